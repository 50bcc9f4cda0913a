//! Chat templates: a conversation as the text that a model was trained on.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat;

use super::clock;
use super::error::{Error, Result};
use super::json;
use super::tokenizer::Tokenizer;
use crate::gguf::Metadata;

const KEY: &str = "tokenizer.chat_template";

/// What messages about a template call it.
const NAME: &str = "chat_template";

/// Instructions that a template may take: a hundred times what the longest
/// take for a long conversation, and little enough to stop a loop in a second.
const FUEL: u64 = 10_000_000;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Whose it is: `system`, `user`, `assistant`, or what else the template
    /// knows.
    pub role: String,
    /// What it says.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// The template that turns a conversation into the text a model expects.
///
/// Templates are Jinja as `transformers` renders it: blocks take the newline
/// after and the whitespace before them, strings and maps have Python's
/// methods, and `raise_exception`, `strftime_now` (in UTC), `tojson`, `break`
/// and `continue` are there. `tools` and `documents` are `none`.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// The file's chat template, if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::Gguf`] of a template that is no string, and
    /// [`Error::ChatTemplate`] of one that does not parse.
    pub fn from_gguf(metadata: &Metadata<'_>) -> Result<Option<Self>> {
        metadata.optional::<&str>(KEY)?.map(Self::parse).transpose()
    }

    /// A chat template from its source.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] when it does not parse.
    pub fn parse(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(failed)?;
        Ok(ChatTemplate { environment })
    }

    /// The text of a conversation, with the start of the model's answer if
    /// `add_generation_prompt`. Encode it with
    /// [`Special`](super::Special)` { parse: true, add: false }`: it has its
    /// control tokens, and most often the first token too.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`], with the line, when the template fails, which
    /// is also how it refuses a conversation, and when it takes too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, tokenizer: &Tokenizer) -> Result<String> {
        // A token that there is not is not defined, as in `transformers`.
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id).ok()).map_or(Value::UNDEFINED, Value::from);
        let message = |message: &Message| context! { role => &message.role, content => &message.content };
        let context = context! {
            messages => messages.iter().map(message).collect::<Vec<_>>(),
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt,
            bos_token => text(tokenizer.bos()),
            eos_token => text(tokenizer.eos()),
            unk_token => text(tokenizer.unknown()),
            pad_token => text(tokenizer.padding()),
        };
        self.environment.get_template(NAME).and_then(|template| template.render(context)).map_err(failed)
    }
}

fn failed(source: minijinja::Error) -> Error {
    Error::ChatTemplate { key: KEY, source: Box::new(source) }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    clock::now().format(format).map_err(|message| minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The source with `{% generation %}`, with which `transformers` marks what a
/// model is trained to say, as a block that is always taken.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let (inner, after) = tag.split_once("%}").unwrap_or((tag, ""));
        let is_closed = inner.len() < tag.len();
        let name = inner.trim_matches(['-', '+']).trim();
        let replaced = match name {
            "generation" if is_closed => inner.replace(name, "if true"),
            "endgeneration" if is_closed => inner.replace(name, "endif"),
            _ => inner.to_owned(),
        };
        out.extend([before, "{%", &replaced, if is_closed { "%}" } else { "" }]);
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, Writer};

    /// A tokenizer with `<s>` and `</s>`, the only thing that templates ask of it.
    fn tokenizer() -> Tokenizer {
        let mut writer = Writer::new();
        writer.metadata("tokenizer.ggml.model", "llama").unwrap();
        writer.metadata("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>"]).unwrap();
        let file = writer.begin(Vec::new()).unwrap().finish().unwrap();
        Tokenizer::from_gguf(Gguf::parse(&file).unwrap().metadata()).unwrap()
    }

    fn conversation() -> Vec<Message> {
        vec![
            Message::new("system", " Be brief. "),
            Message::new("user", "Hi"),
            Message::new("assistant", "Hello"),
            Message::new("user", "<b>\"é\"</b>\n"),
        ]
    }

    fn render(template: &str) -> String {
        ChatTemplate::parse(template).unwrap().render(&conversation(), true, &tokenizer()).unwrap()
    }

    fn error(template: &str) -> String {
        ChatTemplate::parse(template)
            .and_then(|template| template.render(&conversation(), true, &tokenizer()))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_template_like_llama_3s_renders() {
        let template = r"{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

' + message['content'] | trim + '<|eot_id|>' %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>

' }}
{%- endif %}
";
        let turn = |role: &str, text: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>");
        let expected = [
            "<s>".to_owned(),
            turn("system", "Be brief."),
            turn("user", "Hi"),
            turn("assistant", "Hello"),
            turn("user", "<b>\"é\"</b>"),
            "<|start_header_id|>assistant<|end_header_id|>\n\n".to_owned(),
        ];
        assert_eq!(render(template), expected.concat());
    }

    #[test]
    fn a_template_like_gemma_3s_renders() {
        let template = r"{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = '' -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception('invalid content') }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
";
        assert_eq!(
            render(template),
            "<s><start_of_turn>user\n Be brief. \n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n\
             <start_of_turn>user\n<b>\"é\"</b><end_of_turn>\n<start_of_turn>model\n"
        );
    }

    #[test]
    fn a_template_like_qwen_3s_renders() {
        let template = r#"{%- if tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set content = 'reasoned' %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content.strip('\n') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{{- ns.last_query_index }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"#;
        assert_eq!(
            render(template),
            "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\
             Hello<|im_end|>\n<|im_start|>user\n<b>\"é\"</b>\n<|im_end|>\n3<|im_start|>assistant\n"
        );
    }

    #[test]
    fn a_template_like_mistrals_renders() {
        let template = r#"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if message == user_messages[-1] %}
            {{- "[AVAILABLE_TOOLS] [" + ("x" | upper) + "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"#;
        assert_eq!(
            render(template),
            "<s>[INST] Hi[/INST] Hello</s>[AVAILABLE_TOOLS] [X][/AVAILABLE_TOOLS]\
             [INST]  Be brief. \n\n<b>\"é\"</b>\n[/INST]"
        );
    }

    #[test]
    fn a_template_like_phi_3s_renders() {
        let template = "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}\
            {{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}\
            {{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}\
            {{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}";
        assert_eq!(
            render(template),
            "<|system|>\n Be brief. <|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n\
             <|user|>\n<b>\"é\"</b>\n<|end|>\n<|assistant|>\n"
        );
    }

    #[test]
    fn blocks_take_the_newline_after_and_the_whitespace_before_them() {
        assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(render("{{ {'b': [1, 'é<'], 'a': none} | tojson }}"), r#"{"b": [1, "é<"], "a": null}"#);
        assert_eq!(
            render("{{ {'a': [1], 'b': []} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"
        );
    }

    #[test]
    fn generation_tags_are_blocks_that_are_always_taken() {
        assert_eq!(render("a {%- generation -%} b {% endgeneration %} c"), "ab  c");
        assert_eq!(without_generation_tags("{% generation"), "{% generation");
        assert_eq!(without_generation_tags("{% if a %}{{ b }}{% endif %}"), "{% if a %}{{ b }}{% endif %}");
    }

    #[test]
    fn loops_can_be_left() {
        assert_eq!(
            render("{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m.role }}{% endfor %}"),
            "system"
        );
    }

    #[test]
    fn a_template_that_fails_says_in_which_line() {
        let message = error("\n\n{{ raise_exception('no ' + messages[0].role) }}");
        assert!(message.contains("no system") && message.contains("chat_template:3"), "{message}");
        let message = error("\n{% if %}");
        assert!(message.starts_with("metadata key `tokenizer.chat_template`: "), "{message}");
        assert!(message.contains("chat_template:2"), "{message}");
        assert!(error("{{ nothing.at_all }}").contains("chat_template:1"));
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let forever = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(error(forever).contains("fuel"));
        assert!(!error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_empty());
        assert!(!error("{% include 'chat_template' %}").is_empty());
        assert!(!error(&"(".repeat(100_000).replace('(', "{{ (")).is_empty());
    }

    #[test]
    fn the_time_is_written_by_a_format() {
        let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
        assert!(year >= 2025);
        assert!(error("{{ strftime_now('%Q') }}").contains("%Q"));
    }

    #[test]
    fn a_file_without_a_template_has_none() {
        let file = Writer::new().begin(Vec::new()).unwrap().finish().unwrap();
        assert!(ChatTemplate::from_gguf(Gguf::parse(&file).unwrap().metadata()).unwrap().is_none());
    }
}
