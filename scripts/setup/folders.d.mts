/** Types of `folders.mjs`, for src. */
export declare function makeFolders(path: string): void;
