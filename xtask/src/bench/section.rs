//! A section of a Markdown file between two comments, which a command writes anew.

use anyhow::{Result, bail, ensure};

/// `text` with `body` as its section `name`, at the end where it has none.
pub fn replace(text: &str, name: &str, body: &str) -> Result<String> {
    let (open, close) = (format!("<!-- bench:{name} -->"), format!("<!-- /bench:{name} -->"));
    let section = format!("{open}\n{}\n{close}", body.trim_end());
    for marker in [&open, &close] {
        ensure!(text.matches(marker.as_str()).count() <= 1, "`{marker}` is there more than once");
    }
    Ok(match (text.find(&open), text.find(&close)) {
        (Some(start), Some(end)) if start < end => {
            format!("{}{section}{}", &text[..start], &text[end + close.len()..])
        }
        (None, None) => {
            let gap = match text {
                "" => "",
                text if text.ends_with('\n') => "\n",
                _ => "\n\n",
            };
            format!("{text}{gap}{section}\n")
        }
        _ => bail!("`{open}` and `{close}` are not there in this order"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# Title\r\n\n<!-- bench:a -->\nold\n<!-- /bench:a --> kept\n<!-- bench:b -->\nx\n<!-- /bench:b -->\nend";

    #[test]
    fn only_the_section_changes() {
        let once = replace(TEXT, "a", "new\nlines\n\n").unwrap();
        assert_eq!(once, TEXT.replace("\nold\n", "\nnew\nlines\n"));
        assert_eq!(replace(&once, "a", "new\nlines\n").unwrap(), once);
        assert_eq!(replace(&once, "a", "old").unwrap(), TEXT);
    }

    #[test]
    fn a_new_section_is_the_last() {
        for text in ["", "end", "end\n"] {
            let once = replace(text, "c", "body").unwrap();
            assert!(once.starts_with(text) && once.ends_with("<!-- bench:c -->\nbody\n<!-- /bench:c -->\n"), "{once}");
            assert_eq!(replace(&once, "c", "body").unwrap(), once);
        }
    }

    #[test]
    fn broken_markers_are_an_error() {
        let [a, b] = ["<!-- bench:a -->", "<!-- /bench:a -->"];
        for text in [a.to_owned(), b.to_owned(), format!("{b}{a}"), format!("{a}{b}{a}{b}"), format!("{a}{a}{b}")] {
            assert!(replace(&text, "a", "body").is_err(), "{text}");
        }
    }
}
