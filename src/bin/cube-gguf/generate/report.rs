//! Figures at the end.

use std::time::Duration;

use cube_gguf::Device;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Answer, Stop};

/// What a run took.
pub struct Report<'a> {
    pub device: &'a Device,
    /// Bytes that the device holds for this process.
    pub memory: u64,
    /// From the start until the model was loaded.
    pub loaded: Duration,
    /// From the start until the first token.
    pub first_token: Option<Duration>,
    pub answers: &'a [Answer],
}

/// Tokens and how long they took.
struct Phase {
    tokens: usize,
    seconds: f64,
}

impl Phase {
    fn of(answers: &[Answer], part: impl Fn(&Answer) -> (usize, Duration)) -> Self {
        let (tokens, time) = answers.iter().map(part).fold((0, Duration::ZERO), |(n, t), (m, u)| (n + m, t + u));
        Self { tokens, seconds: time.as_secs_f64() }
    }

    fn per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    fn json(&self) -> Value {
        json!({ "seconds": self.seconds, "tokens": self.tokens, "tokens_per_second": self.per_second() })
    }
}

impl Report<'_> {
    fn prompt(&self) -> Phase {
        Phase::of(self.answers, |answer| (answer.read, answer.reading))
    }

    /// Steps are one fewer than tokens: the last one is read by none.
    fn generation(&self) -> Phase {
        Phase::of(self.answers, |answer| (answer.steps, answer.stepping))
    }

    /// One line, and one more where there was no more room.
    pub fn text(&self) -> String {
        let (prompt, generation) = (self.prompt(), self.generation());
        let mut text = String::new();
        if self.answers.iter().any(|answer| answer.stop == Stop::Context) {
            text.push_str("The context is full: --context makes it larger.\n");
        }
        text.push_str(&format!(
            "prompt {} tokens, {:.1}/s; generation {} steps, {:.1}/s; loaded in {:.2} s, first token after {:.2} s; {} on {}\n",
            prompt.tokens,
            prompt.per_second(),
            generation.tokens,
            generation.per_second(),
            self.loaded.as_secs_f64(),
            self.first_token.unwrap_or_default().as_secs_f64(),
            HumanBytes(self.memory),
            self.device,
        ));
        text
    }

    /// The answer to one prompt.
    pub fn json(&self, prompt: &[u32], seed: u64) -> Value {
        let answer = self.answers.first();
        json!({
            "prompt_tokens": prompt,
            "tokens": answer.map(|answer| &answer.tokens),
            "text": answer.map(|answer| &answer.text),
            "stop": answer.map(|answer| answer.stop.name()),
            "seed": seed,
            "prompt": self.prompt().json(),
            "generation": self.generation().json(),
            "load_seconds": self.loaded.as_secs_f64(),
            "first_token_seconds": self.first_token.map(|time| time.as_secs_f64()),
            "memory_bytes": self.memory,
            "device": self.device.to_string(),
        })
    }
}

impl Stop {
    /// The name in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Limit => "tokens",
            Self::Context => "context",
            Self::Interrupt => "interrupt",
        }
    }
}
