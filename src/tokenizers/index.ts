/** Public names of `src/tokenizers`. */
export type { AutoencoderConfig, Naming } from "./autoencoder.js";
export { Decoder, Encoder } from "./autoencoder.js";
export { buildTokenizerFrozen, FrozenTokenizer } from "./frozen.js";
export { IBQ, IBQ_ARG_NAMES, type IBQArgs, ibqConfig } from "./ibq.js";
export {
  buildTokenizer,
  createTokenizer,
  isTokenizer,
  type RecogniseOptions,
  recogniseTokenizer,
  type TokenizerDescription,
} from "./load.js";
export {
  TOKENIZER_CONFIG_NAMES,
  type TokenizerConfig,
  TokenizerModel,
} from "./model.js";
export { TOKENIZER_PRESETS, type TokenizerPreset } from "./presets.js";
export {
  type Lookup,
  nearestCodes,
  type QuantizerConfig,
  VectorQuantizer,
} from "./quantizers.js";
export type { Grid, ImageTokenizer } from "./tokenizer.js";
export { VQ_MODELS, VQModel, type VQModelOptions, vqConfig } from "./vq_model.js";
