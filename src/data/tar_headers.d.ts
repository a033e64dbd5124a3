/** The part of tar-stream that its own types omit: decoding one header. */
declare module "tar-stream/headers.js" {
  interface Header {
    name: string;
    /** May be negative, or no number, in a damaged file. */
    size: number;
    /** `null` for a kind that tar-stream does not know. */
    type: string | null;
    /** What a link links to. */
    linkname: string | null;
  }
  const headers: {
    /** `null` for a block of zeros. @throws Error for a wrong checksum. */
    decode(block: Buffer, encoding: BufferEncoding): Header | null;
  };
  export default headers;
}
