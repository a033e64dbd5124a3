/** Public names of `src/encoders`. */
export { AestheticHead, openAestheticHead } from "./aesthetic.js";
export { classVectors, cosines, Encoder, inTemplate, perSample, type Towers } from "./encoder.js";
export { EncoderFeatures, requireSameCodebook } from "./features.js";
export { describeEncoder, encoderFiles, isEncoder, type OpenEncoderOptions, openEncoder } from "./load.js";
export { type ImagePreprocessing, prepareImages } from "./preprocess.js";
export { type Clean, cleanText, openTextTokenizer } from "./texts.js";
