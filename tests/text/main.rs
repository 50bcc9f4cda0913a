//! The tokenizers: against llama.cpp's answers, against slow and obvious
//! implementations, and on files that do not hold up.

mod fixtures;
mod hostile;
mod reference;
mod vocabularies;
