//! Choosing the next token.

use std::cmp::Ordering;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::error::{Error, Result};

/// How the next token is chosen: which tokens are left to choose from, in the
/// order of the fields, and how far their probabilities are evened out.
///
/// The order and the meaning are those of llama.cpp's default chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Leaves this many of the most likely tokens; 0 leaves all.
    pub top_k: usize,
    /// Leaves the fewest tokens whose probabilities sum up to this; 1 leaves
    /// all.
    pub top_p: f32,
    /// Leaves tokens that are this likely relative to the likeliest; 0 leaves
    /// all.
    pub min_p: f32,
    /// Divides the logits: below 1 the likely become likelier. 0 chooses the
    /// likeliest always.
    pub temperature: f32,
    /// Where the random numbers start: the same seed chooses the same tokens
    /// of the same logits, on every platform.
    pub seed: u64,
}

impl Default for Sampling {
    /// llama.cpp's.
    fn default() -> Self {
        Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, temperature: 0.8, seed: 0 }
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Candidate {
    /// Likeliest first, then by id, so that there is one order.
    fn cmp(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// Chooses the next token, from one call to the next of a stream of random
/// numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Pcg64Mcg,
    /// Kept for its memory.
    candidates: Vec<Candidate>,
}

/// How many tokens are sorted first to find those of [`Sampling::top_p`]:
/// mostly enough, of vocabularies of hundreds of thousands.
const FIRST_SORTED: usize = 256;

impl Sampler {
    /// A sampler with its own stream of random numbers.
    ///
    /// # Errors
    ///
    /// [`Error::BadSampling`]: a temperature that is negative or not finite, a
    /// `top_p` outside (0, 1], a `min_p` outside [0, 1].
    pub fn new(sampling: Sampling) -> Result<Self> {
        let Sampling { top_p, min_p, temperature, seed, .. } = sampling;
        let check = |name, found, is_good: bool, wanted| {
            if is_good { Ok(()) } else { Err(Error::BadSampling { name, found, wanted }) }
        };
        check("temperature", temperature, (0.0..f32::INFINITY).contains(&temperature), "finite and at least 0")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        Ok(Sampler { sampling, random: Pcg64Mcg::seed_from_u64(seed), candidates: Vec::new() })
    }

    /// Chooses a token by the logits of all. A logit of -infinity rules its
    /// token out.
    ///
    /// # Errors
    ///
    /// [`Error::LogitCount`] of no logits, [`Error::BadLogit`] of one that is
    /// NaN or +infinity, [`Error::NoCandidates`] when all are -infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.collect(logits)?;
        if self.sampling.temperature == 0.0 {
            return self.likeliest(logits.len());
        }
        self.keep_top_k();
        self.keep_top_p();
        self.keep_min_p();
        self.choose(logits.len())
    }

    fn collect(&mut self, logits: &[f32]) -> Result<()> {
        let count = logits.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(Error::LogitCount { count });
        }
        self.candidates.clear();
        for (id, &logit) in (0..).zip(logits) {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(Error::BadLogit { id, logit });
            }
            if logit > f32::NEG_INFINITY {
                // Makes -0.0 be 0.0, which it ties with.
                self.candidates.push(Candidate { id, logit: logit + 0.0 });
            }
        }
        Ok(())
    }

    fn likeliest(&self, count: usize) -> Result<u32> {
        let first = self.candidates.iter().min_by(|a, b| a.cmp(b));
        first.map(|candidate| candidate.id).ok_or(Error::NoCandidates { count })
    }

    fn keep_top_k(&mut self) {
        let k = self.sampling.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k, Candidate::cmp);
            self.candidates.truncate(k);
        }
    }

    fn keep_top_p(&mut self) {
        let top_p = f64::from(self.sampling.top_p);
        if top_p >= 1.0 {
            return;
        }
        let wanted = top_p * self.weights(1.0).sum::<f64>();
        let max = self.max_logit();
        let (mut sorted, mut sum) = (0, 0.0);
        while sorted < self.candidates.len() {
            let batch = sort_more(&mut self.candidates, sorted);
            for candidate in &self.candidates[sorted..batch] {
                sum += weight(candidate.logit, max, 1.0);
                sorted += 1;
                if sum >= wanted {
                    return self.candidates.truncate(sorted);
                }
            }
        }
    }

    fn keep_min_p(&mut self) {
        let min_p = f64::from(self.sampling.min_p);
        if min_p > 0.0 {
            let max = self.max_logit();
            let lowest = f64::from(max) + libm::log(min_p);
            self.candidates.retain(|candidate| candidate.logit == max || f64::from(candidate.logit) >= lowest);
        }
    }

    /// Chooses by the probabilities of what is left.
    fn choose(&mut self, count: usize) -> Result<u32> {
        let temperature = f64::from(self.sampling.temperature);
        let mut left = self.uniform() * self.weights(temperature).sum::<f64>();
        let mut chosen = None;
        for (candidate, weight) in self.candidates.iter().zip(self.weights(temperature)) {
            // Rounding may leave a rest after the last; then that is the one.
            if weight > 0.0 {
                chosen = Some(candidate.id);
            }
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        chosen.ok_or(Error::NoCandidates { count })
    }

    /// A number from 0 to below 1.
    fn uniform(&mut self) -> f64 {
        const BITS: u32 = f64::MANTISSA_DIGITS;
        let bits = self.random.next_u64() >> (u64::BITS - BITS);
        bits as f64 / (1u64 << BITS) as f64
    }

    /// The probabilities of the candidates, times a number.
    fn weights(&self, temperature: f64) -> impl Iterator<Item = f64> {
        let max = self.max_logit();
        self.candidates.iter().map(move |candidate| weight(candidate.logit, max, temperature))
    }

    fn max_logit(&self) -> f32 {
        self.candidates.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
    }
}

/// The probability of a token relative to the likeliest. `libm` and not the
/// platform's own, whose last bits differ.
fn weight(logit: f32, max: f32, temperature: f64) -> f64 {
    libm::exp((f64::from(logit) - f64::from(max)) / temperature)
}

/// Sorts more of the likeliest candidates, of which `sorted` are sorted, and
/// gives how many are now.
fn sort_more(candidates: &mut [Candidate], sorted: usize) -> usize {
    let rest = &mut candidates[sorted..];
    let batch = sorted.max(FIRST_SORTED).min(rest.len());
    if batch < rest.len() {
        rest.select_nth_unstable_by(batch, Candidate::cmp);
    }
    rest[..batch].sort_unstable_by(Candidate::cmp);
    sorted + batch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token, at its own probability.
    const PLAIN: Sampling = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed: 0 };

    const DRAWS: u32 = 20_000;

    /// Draws a token of `probabilities` with each of many seeds, and compares
    /// how often each came with `expected`.
    fn check(sampling: Sampling, probabilities: &[f64], expected: &[f64]) {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
        let mut counts = vec![0u32; logits.len()];
        for seed in 0..DRAWS {
            let mut sampler = Sampler::new(Sampling { seed: seed.into(), ..sampling }).unwrap();
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        for (&count, &p) in counts.iter().zip(expected) {
            // Five standard deviations of a binomial: one run in millions fails.
            let n = f64::from(DRAWS);
            let tolerance = 5.0 * (n * p * (1.0 - p)).sqrt();
            assert!((f64::from(count) - n * p).abs() <= tolerance, "{counts:?} against {expected:?}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let p = [0.5, 0.05, 0.0, 0.3, 0.15];
        check(PLAIN, &p, &p);
    }

    #[test]
    fn one_stream_gives_each_token_as_often_as_many_do() {
        let logits = [0.6f32, 0.3, 0.1].map(f32::ln);
        let mut sampler = Sampler::new(PLAIN).unwrap();
        let mut counts = [0u32; 3];
        (0..DRAWS).for_each(|_| counts[sampler.sample(&logits).unwrap() as usize] += 1);
        for (count, p) in counts.into_iter().zip([0.6, 0.3, 0.1]) {
            let n = f64::from(DRAWS);
            assert!((f64::from(count) - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn top_k_leaves_the_likeliest() {
        check(Sampling { top_k: 2, ..PLAIN }, &[0.1, 0.4, 0.2, 0.3], &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(Sampling { top_k: 9, ..PLAIN }, &[0.25, 0.75], &[0.25, 0.75]);
    }

    #[test]
    fn top_p_leaves_the_fewest_that_reach_it() {
        let p = [0.1, 0.4, 0.2, 0.3];
        check(Sampling { top_p: 0.65, ..PLAIN }, &p, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(Sampling { top_p: 0.75, ..PLAIN }, &p, &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        check(Sampling { top_p: 1e-6, ..PLAIN }, &p, &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn min_p_leaves_what_is_likely_enough_beside_the_likeliest() {
        check(Sampling { min_p: 0.6, ..PLAIN }, &[0.1, 0.4, 0.2, 0.3], &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(Sampling { min_p: 1.0, ..PLAIN }, &[0.1, 0.4, 0.4, 0.1], &[0.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn temperature_comes_after_the_filters() {
        // By the probabilities as they are, 0.65 needs two; flattened it would need three.
        let (a, b) = (0.4f64.sqrt(), 0.3f64.sqrt());
        let flat = Sampling { top_p: 0.65, temperature: 2.0, ..PLAIN };
        check(flat, &[0.1, 0.4, 0.2, 0.3], &[0.0, a / (a + b), 0.0, b / (a + b)]);
    }

    #[test]
    fn temperature_0_takes_the_likeliest_and_of_equals_the_first() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..PLAIN }).unwrap();
        assert_eq!(sampler.sample(&[-1.0, 2.0, 0.5, 2.0]).unwrap(), 1);
        assert_eq!(sampler.sample(&[-0.0, 0.0]).unwrap(), 0);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3e38]).unwrap(), 1);
    }

    #[test]
    fn a_tiny_temperature_is_nearly_0_and_not_nan() {
        let mut sampler = Sampler::new(Sampling { temperature: f32::MIN_POSITIVE, ..PLAIN }).unwrap();
        assert_eq!(sampler.sample(&[3e38, -3e38, 2.9e38]).unwrap(), 0);
    }

    #[test]
    fn the_same_seed_chooses_the_same_tokens() {
        let logits: Vec<f32> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4e6).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }).unwrap();
            (0..8).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn partial_sorting_keeps_what_full_sorting_would() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 12) as f32 / 1e6).collect();
        let mut sampler = Sampler::new(Sampling { top_p: 0.9, ..PLAIN }).unwrap();
        sampler.collect(&logits).unwrap();
        let mut sorted = sampler.candidates.clone();
        sorted.sort_by(Candidate::cmp);
        sampler.keep_top_p();
        let kept = sampler.candidates.len();
        assert!(kept > 2 * FIRST_SORTED && kept < logits.len());
        assert_eq!(sampler.candidates, sorted[..kept]);
    }

    #[test]
    fn what_is_no_setting_is_an_error() {
        for bad in [
            Sampling { temperature: -1.0, ..PLAIN },
            Sampling { temperature: f32::NAN, ..PLAIN },
            Sampling { temperature: f32::INFINITY, ..PLAIN },
            Sampling { top_p: 0.0, ..PLAIN },
            Sampling { top_p: 1.5, ..PLAIN },
            Sampling { top_p: f32::NAN, ..PLAIN },
            Sampling { min_p: -0.1, ..PLAIN },
            Sampling { min_p: f32::NAN, ..PLAIN },
        ] {
            assert!(matches!(Sampler::new(bad), Err(Error::BadSampling { .. })), "{bad:?}");
        }
    }

    #[test]
    fn what_are_no_logits_is_an_error() {
        for sampling in [PLAIN, Sampling { temperature: 0.0, ..PLAIN }, Sampling::default()] {
            let mut sampler = Sampler::new(sampling).unwrap();
            let mut error = |logits: &[f32]| sampler.sample(logits).unwrap_err().to_string();
            assert_eq!(error(&[]), "cannot sample from 0 logits");
            assert_eq!(error(&[0.0, f32::NAN]), "the logit of token 1 is NaN");
            assert_eq!(error(&[f32::INFINITY]), "the logit of token 0 is inf");
            assert_eq!(error(&[f32::NEG_INFINITY; 2]), "all 2 logits are -inf: no token is possible");
        }
    }
}
