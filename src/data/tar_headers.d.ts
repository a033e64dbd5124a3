/** The part of tar-stream that its own types omit: decoding one header. */
declare module "tar-stream/headers.js" {
  interface Header {
    name: string;
    /** May be negative or NaN in a damaged file. */
    size: number;
    /** `null` for a kind that tar-stream does not know. */
    type: string | null;
    /** What a link links to. */
    linkname: string | null;
  }
  const headers: {
    /** `null` for a block of zeros. @throws Error for a wrong checksum, or where the form is unknown and not allowed. */
    decode(block: Buffer, encoding: BufferEncoding, allowUnknownFormat: boolean): Header | null;
  };
  export default headers;
}
