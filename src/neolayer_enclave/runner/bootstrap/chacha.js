// Imported by name, so that the build leaves out the rest of the package. Loaded when first used.

export { rngChacha20 } from '@noble/ciphers/chacha.js';
