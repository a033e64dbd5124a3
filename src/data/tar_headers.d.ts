/** The part of tar-stream that its own types leave out: decoding one header. */
declare module "tar-stream/headers.js" {
  interface Header {
    name: string;
    size: number;
    /** `null` for a kind that tar-stream does not know. */
    type: string | null;
  }
  const headers: {
    /** `null` for a block of zeros. @throws Error for a wrong checksum. */
    decode(block: Buffer): Header | null;
    decodePax(data: Buffer): Record<string, string>;
    decodeLongPath(data: Buffer): string;
  };
  export default headers;
}
