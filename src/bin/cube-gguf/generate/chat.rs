//! A conversation in the terminal.

use std::io::{self, BufRead, IsTerminal};
use std::time::{Duration, Instant};

use cube_gguf::text::{ChatTemplate, Message, Special};

use super::{Answer, Writer};
use crate::Outcome;
use crate::output::{escape_text, print};

/// Answers each line of stdin until there are no more. Gives the answers, and when the first one began.
pub fn converse(
    writer: &mut Writer<'_>,
    template: &ChatTemplate,
    start: Instant,
) -> Outcome<(Vec<Answer>, Option<Duration>)> {
    let (mut messages, mut answers, mut first_token) = (Vec::new(), Vec::new(), None);
    let is_terminal = io::stdin().is_terminal();
    let mut lines = io::stdin().lock();
    loop {
        if is_terminal {
            print("> ")?;
        }
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok((answers, first_token));
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line.trim()));
        let text = template.render(&messages, true, writer.tokenizer)?;
        let tokens = writer.tokenizer.encode(&text, Special { parse: true, add: false })?;
        let rest = rest(writer, &tokens);
        let answer = writer.answer(&rest, |text| {
            first_token.get_or_insert_with(|| start.elapsed());
            print(&escape_text(text))
        })?;
        print("\n")?;
        messages.push(Message::new("assistant", answer.text.clone()));
        answers.push(answer);
    }
}

/// What of `tokens` the model has not read: what it has read beyond their common start is forgotten.
fn rest(writer: &mut Writer<'_>, tokens: &[u32]) -> Vec<u32> {
    let known = writer.session.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
    // The logits are those of the last token.
    let known = known.min(tokens.len().saturating_sub(1));
    writer.session.truncate(known);
    tokens[known..].to_vec()
}
