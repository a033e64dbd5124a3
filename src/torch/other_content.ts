/** What a file holds that was fetched in place of weights. Used by the readers of safetensors and of checkpoints. */

/** What the first bytes of a file are, and what to do; undefined for anything that may be weights. */
export function otherContent(head: Uint8Array): readonly [got: string, remedy: string] | undefined {
  if (head.length === 0) return ["an empty file", "Fetch it again"];
  const text = Buffer.from(head.buffer, head.byteOffset, head.length).toString("latin1");
  if (text.startsWith("version https://git-lfs")) {
    return ["a git-lfs pointer", "Fetch the file itself: git lfs pull"];
  }
  if (/^\s*<(!doctype|html|\?xml)/i.test(text)) {
    return ["a web page", "The download was refused or redirected; fetch it again"];
  }
  return undefined;
}
