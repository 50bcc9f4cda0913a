//! `cube-gguf generate`.

mod chat;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use cube_gguf::Device;
use cube_gguf::gguf::{Files, Gguf};
use cube_gguf::models::{Model, Session};
use cube_gguf::text::{ChatTemplate, Detokenizer, Message, Sampler, Sampling, Special, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};

use self::report::Report;
use crate::output::{escape_text, print, print_json};
use crate::{DeviceArgument, INTERRUPTED, Outcome, interrupt};

/// The most tokens of a conversation that nobody gave a limit.
const CONVERSATION: usize = 4096;

#[derive(Args)]
#[command(after_help = "\
The text goes to stdout as it comes, figures to stderr at the end. Ctrl-C ends the text, a second one the command; the exit
status is then 130.

Examples:
  cube-gguf generate model.gguf --prompt 'The capital of France is' -n 32
  cube-gguf generate model.gguf --prompt 'Why is the sky blue?' --chat --temp 0 --json
  cube-gguf generate model.gguf --chat --device rocm")]
pub struct Arguments {
    /// A GGUF file, or any shard of a split one.
    file: PathBuf,
    /// The text to go on from, or with --chat the message to answer.
    #[arg(long, value_name = "TEXT", required_unless_present = "chat")]
    prompt: Option<String>,
    /// The most tokens to generate, of each answer.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Divides the logits: 0 takes the likeliest token always.
    #[arg(long, value_name = "T", allow_negative_numbers = true, default_value_t = Sampling::default().temperature)]
    temp: f32,
    /// Leaves this many of the likeliest tokens; 0 leaves all.
    #[arg(long, value_name = "K", default_value_t = Sampling::default().top_k)]
    top_k: usize,
    /// Leaves the fewest tokens whose probabilities sum up to this.
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p)]
    top_p: f32,
    /// Leaves tokens that are this likely relative to the likeliest.
    #[arg(long, value_name = "P", default_value_t = Sampling::default().min_p)]
    min_p: f32,
    /// Where the random numbers start: the same seed gives the same text.
    #[arg(long, value_name = "S", default_value_t = Sampling::default().seed)]
    seed: u64,
    /// Use the file's chat template; without --prompt, a conversation in the terminal.
    #[arg(long)]
    chat: bool,
    /// Tokens to have room for, prompt included: by default what the prompt and its answer take, 4096 for a conversation.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    #[command(flatten)]
    device: DeviceArgument,
    /// Print one JSON object.
    #[arg(long, requires = "prompt")]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Outcome<ExitCode> {
    let start = Instant::now();
    let files = Files::open(&arguments.file)?;
    let file = files.parse()?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let template = template(arguments, &file)?;
    let sampler = sampler(arguments)?;
    let prompt = match &arguments.prompt {
        Some(text) => Some(encode(text, &tokenizer, template.as_ref())?),
        None => None,
    };
    let device = arguments.device.open()?;
    let model = load_model(&file, &device, arguments.json)?;
    let loaded = start.elapsed();

    let limit = arguments.tokens as usize;
    let room = match (arguments.context, &prompt) {
        (Some(context), _) => context as usize,
        (None, Some(prompt)) => (prompt.len() + limit).min(model.context()),
        (None, None) => CONVERSATION.min(model.context()),
    };
    interrupt::install()?;
    let session = model.session(room)?.with_recording();
    let greedy = arguments.temp == 0.0;
    let mut writer = Writer { tokenizer: &tokenizer, sampler, greedy, session, limit, start, first_token: None };
    let Some(prompt) = prompt else {
        let template = template.ok_or("a conversation needs --chat")?;
        let answers = chat::converse(&mut writer, &template)?;
        let first_token = writer.first_token;
        let report = Report { device: &device, memory: model.memory(), loaded, first_token, answers: &answers };
        eprint!("{}", report.text());
        return Ok(ExitCode::SUCCESS);
    };

    let answer = writer.answer(&prompt, |text| if arguments.json { Ok(()) } else { print(&escape_text(text)) })?;
    let first_token = writer.first_token;
    let interrupted = answer.stop == Stop::Interrupt;
    let report = Report { device: &device, memory: model.memory(), loaded, first_token, answers: &[answer] };
    match arguments.json {
        true => print_json(&report.json(&prompt, arguments.seed))?,
        false => {
            print("\n")?;
            eprint!("{}", report.text());
        }
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The file's chat template, where it is asked for.
fn template(arguments: &Arguments, file: &Gguf<'_>) -> Outcome<Option<ChatTemplate>> {
    if !arguments.chat {
        return Ok(None);
    }
    match ChatTemplate::from_gguf(file.metadata())? {
        Some(template) => Ok(Some(template)),
        None => Err(format!("{} has no chat template: leave --chat off", arguments.file.display()).into()),
    }
}

fn sampler(arguments: &Arguments) -> Outcome<Sampler> {
    let &Arguments { temp: temperature, top_k, top_p, min_p, seed, .. } = arguments;
    Ok(Sampler::new(Sampling { top_k, top_p, min_p, temperature, seed })?)
}

/// The tokens of a prompt.
fn encode(text: &str, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Outcome<Vec<u32>> {
    if text.is_empty() {
        return Err("the prompt is empty".into());
    }
    match template {
        Some(template) => encode_messages(&[Message::new("user", text)], tokenizer, template),
        None => Ok(tokenizer.encode(text, Special { parse: true, add: true })?),
    }
}

/// The tokens of a conversation, up to where its next answer begins.
fn encode_messages(messages: &[Message], tokenizer: &Tokenizer, template: &ChatTemplate) -> Outcome<Vec<u32>> {
    let text = template.render(messages, true, tokenizer)?;
    Ok(tokenizer.encode(&text, Special { parse: true, add: false })?)
}

/// Loads a model, with a bar of what is loaded unless `quiet`.
pub fn load_model(file: &Gguf<'_>, device: &Device, quiet: bool) -> Outcome<Model> {
    let bytes = file.tensors().filter_map(|tensor| tensor.size_in_bytes().ok()).sum::<usize>();
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(bytes as u64) };
    if let Ok(style) = ProgressStyle::with_template("Loading {bar:30} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    let model = Model::load_with_progress(file, device, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(model?)
}

/// Why an answer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The model ended it.
    End,
    /// It has as many tokens as were asked for.
    Limit,
    /// There is no more room.
    Context,
    /// The user ended it.
    Interrupt,
}

/// What a model wrote, and how long it took.
struct Answer {
    tokens: Vec<u32>,
    text: String,
    stop: Stop,
    /// Tokens that were read before it.
    read: usize,
    reading: Duration,
    /// Steps of one token.
    steps: usize,
    stepping: Duration,
}

/// What writes answers: a run of a model with its tokenizer and sampler.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    /// Whether the likeliest token is taken always.
    greedy: bool,
    session: Session<'a>,
    limit: usize,
    /// When the command began, and how long after it the first token came.
    start: Instant,
    first_token: Option<Duration>,
}

impl Writer<'_> {
    /// Reads tokens, and gives the one after them.
    fn next(&mut self, tokens: &[u32]) -> Outcome<u32> {
        if self.greedy {
            let (token, logit) = self.session.feed_for_likeliest(tokens)?;
            return if logit.is_finite() { Ok(token) } else { Err(format!("the likeliest logit is {logit}").into()) };
        }
        Ok(self.sampler.sample(&self.session.feed(tokens)?)?)
    }

    /// Reads `prompt` after the tokens so far, and gives what follows it to `show`, a piece at a time.
    fn answer(&mut self, prompt: &[u32], mut show: impl FnMut(&str) -> std::io::Result<()>) -> Outcome<Answer> {
        let start = Instant::now();
        let mut next = self.next(prompt)?;
        let reading = start.elapsed();
        let mut answer = Answer {
            tokens: Vec::new(),
            text: String::new(),
            stop: Stop::Interrupt,
            read: prompt.len(),
            reading,
            steps: 0,
            stepping: Duration::ZERO,
        };
        let mut detokenizer = Detokenizer::new(self.tokenizer);
        let listening = interrupt::listen();
        let start = Instant::now();
        while !listening.is_interrupted() {
            if self.tokenizer.is_end(next) {
                answer.stop = Stop::End;
                break;
            }
            self.first_token.get_or_insert_with(|| self.start.elapsed());
            answer.tokens.push(next);
            let text = detokenizer.push(next)?;
            show(&text)?;
            answer.text.push_str(&text);
            if answer.tokens.len() == self.limit {
                answer.stop = Stop::Limit;
                break;
            }
            if self.session.left() == 0 {
                answer.stop = Stop::Context;
                break;
            }
            next = self.next(&[next])?;
            answer.steps += 1;
        }
        answer.stepping = start.elapsed();
        let text = detokenizer.finish();
        show(&text)?;
        answer.text.push_str(&text);
        Ok(answer)
    }
}
