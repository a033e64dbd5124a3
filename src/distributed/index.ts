/** The public names of process groups. */
export {
  allGather,
  allReduce,
  barrier,
  broadcast,
  broadcastValue,
  gatherParts,
  gatherValues,
  isAnyAborted,
  type Reduction,
  reduceScatter,
  requireSame,
  takeTraffic,
} from "./collectives.js";
export { firstHost, readEnvironment, restartsOf } from "./environment.js";
export { LostRankError } from "./failure.js";
export { accumulateGradients, bucketsInTime, reduceGradients } from "./gradients.js";
export {
  destroy,
  init,
  isFirst,
  isSpeaker,
  localRank,
  rank,
  size,
  withGroup,
} from "./group.js";
export { gatherOwned, ownersOf, shareOwned } from "./shards.js";
export { ownParts, ownShare, shares } from "./share.js";
