/** Ownership of several things that are made one after another, and are freed together. */

/** What holds memory until it is freed: a tensor, a module, a batch. */
type Freeable = Disposable | { dispose(): void };

/** Takes over a part, and returns it; null is no part. */
export type Own = <T extends Freeable | null>(part: T) => T;

/**
 * What `make` returns, as a copy. Disposing of the copy frees all that `make` gave to `own`, the last part first. If `make`
 * fails, the parts are freed at once.
 */
export async function owning<T extends object>(make: (own: Own) => Promise<T>): Promise<T & Disposable> {
  const owned: Freeable[] = [];
  const own: Own = (part) => {
    if (part !== null) owned.push(part);
    return part;
  };
  const free = (): void => {
    for (const part of owned.splice(0).reverse()) {
      if (Symbol.dispose in part) part[Symbol.dispose]();
      else part.dispose();
    }
  };
  try {
    return { ...(await make(own)), [Symbol.dispose]: free };
  } catch (error) {
    free();
    throw error;
  }
}
