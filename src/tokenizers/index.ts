/** The tokenizers' public names. */
export type { AutoencoderConfig, Naming } from "./autoencoder.js";
export { Decoder, Encoder } from "./autoencoder.js";
export { buildTokenizerFrozen, FrozenTokenizer } from "./frozen.js";
export { type DdConfig, IBQ, IBQ_DEFAULTS, type IBQArgs, ibqConfig } from "./ibq.js";
export {
  buildTokenizer,
  createTokenizer,
  type IgnoredKeys,
  loadTokenizer,
  type RecogniseOptions,
  recogniseTokenizer,
  type Shapes,
  type TokenizerDescription,
} from "./load_tokenizer.js";
export { TOKENIZER_PRESETS, type TokenizerPreset } from "./presets.js";
export {
  type Lookup,
  nearestCodes,
  type Quantized,
  type QuantizerConfig,
  VectorQuantizer,
} from "./quantizers.js";
export type { Grid, ImageTokenizer } from "./tokenizer.js";
export { type TokenizerConfig, TokenizerModel, type TokenizerOutput } from "./tokenizer_model.js";
export { VQ_MODELS, VQModel, type VQModelOptions, vqConfig } from "./vq_model.js";
