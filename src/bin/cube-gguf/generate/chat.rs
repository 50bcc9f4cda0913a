//! A conversation in the terminal.

use std::io::{self, BufRead, IsTerminal};

use cube_gguf::text::{ChatTemplate, Message};

use super::{Answer, Writer, encode_messages};
use crate::Outcome;
use crate::output::{escape_text, print};

/// Answers each line of stdin until there are no more.
pub fn converse(writer: &mut Writer<'_>, template: &ChatTemplate) -> Outcome<Vec<Answer>> {
    let (mut messages, mut answers) = (Vec::new(), Vec::new());
    let is_terminal = io::stdin().is_terminal();
    let mut lines = io::stdin().lock();
    loop {
        if is_terminal {
            print("> ")?;
        }
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(answers);
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line.trim()));
        let tokens = encode_messages(&messages, writer.tokenizer, template)?;
        let rest = rest(writer, &tokens);
        let answer = writer.answer(&rest, |text| print(&escape_text(text)))?;
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
