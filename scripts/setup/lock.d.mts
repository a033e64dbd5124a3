/** Types of `lock.mjs`, for src/run. */
export interface Owner {
  readonly pid: number;
  readonly host: string;
}

export declare function tryLock(path: string): Promise<{ owner: Owner } | { release: () => void }>;

export declare function isLocked(path: string): boolean;
