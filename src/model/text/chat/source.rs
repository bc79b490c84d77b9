//! A template's source, before it is compiled: what the engine reads differently from Jinja2 or lacks is spelled another
//! way. Lines stay where they are, so errors still point right.
//!
//! - `{% generation %}` … `{% endgeneration %}`, transformers' own tag, marks what the assistant wrote. It matters in
//!   training only; here it becomes a `with` block, which like the original is a scope of its own and, being a block tag,
//!   treats the white space around it alike.
//! - A slice with a step (`messages[::-1]`) becomes a method call, [`super::methods`] having Python's rules: the
//!   engine's own slices (minijinja 3.0.5) get some bounds wrong and panic on an empty list.
//! - A raw block keeps the line break that follows its opening tag, as in Jinja2.

/// The method that slices with a step become.
pub const SLICE_METHOD: &str = "__slice__";

pub fn prepare(source: &str) -> String {
    // Jinja2 reads every line ending as `\n`.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut in_raw = false;
    while let Some(at) = rest.find('{') {
        let (text, from_brace) = rest.split_at(at);
        out.push_str(text);
        let close = match from_brace.as_bytes().get(1) {
            Some(b'{') if !in_raw => "}}",
            Some(b'#') if !in_raw => "#}",
            Some(b'%') => "%}",
            _ => {
                out.push('{');
                rest = &from_brace[1..];
                continue;
            }
        };
        let len = from_brace[2..].find(close).map_or(from_brace.len(), |found| found + 4);
        let (tag, after) = from_brace.split_at(len);
        let word = if close == "%}" { word_of(tag) } else { "" };
        if in_raw && word != "endraw" {
            // Inside raw text nothing opens but the end of it.
            out.push('{');
            rest = &from_brace[1..];
            continue;
        }
        rest = after;
        in_raw = word == "raw";
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "raw" if !tag.ends_with("-%}") && !tag.ends_with("+%}") => {
                out.push_str(&tag[..tag.len() - 2]);
                out.push_str("+%}");
            }
            _ if close == "#}" => out.push_str(tag),
            _ => push_with_slices_called(tag, &mut out),
        }
    }
    out.push_str(rest);
    out
}

/// What stands alone in a block tag, without its white space marks.
fn word_of(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or("");
    inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim()
}

/// An opening bracket, and the colons directly inside it.
struct Bracket {
    at: usize,
    colons: Vec<usize>,
}

/// Writes `value[a:b:c]` as `value.__slice__(a, b, c)`, absent parts as none.
fn push_with_slices_called(tag: &str, out: &mut String) {
    let mut edits: Vec<(usize, String)> = Vec::new();
    let mut open: Vec<Bracket> = Vec::new();
    let mut letters = tag.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' | '\'' => skip_string(letter, &mut letters),
            '[' | '(' | '{' => open.push(Bracket { at, colons: vec![] }),
            ':' => open.last_mut().into_iter().for_each(|bracket| bracket.colons.push(at)),
            ']' | ')' | '}' => {
                let Some(bracket) = open.pop() else { continue };
                if letter != ']' || bracket.colons.len() != 2 {
                    continue;
                }
                let mut part_start = bracket.at + 1;
                edits.push((bracket.at, format!(".{SLICE_METHOD}(")));
                for end in bracket.colons.into_iter().chain([at]) {
                    let absent = if tag[part_start..end].trim().is_empty() { "none" } else { "" };
                    edits.push((end, format!("{absent}{}", if end == at { ")" } else { ", " })));
                    part_start = end + 1;
                }
            }
            _ => {}
        }
    }
    edits.sort_by_key(|(at, _)| *at);
    let mut done = 0;
    for (at, text) in edits {
        out.push_str(&tag[done..at]);
        out.push_str(&text);
        done = at + 1;
    }
    out.push_str(&tag[done..]);
}

fn skip_string(quote: char, letters: &mut std::str::CharIndices<'_>) {
    while let Some((_, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_meant_is_rewritten() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "{% with %}a{% endwith %}"),
            ("{%- generation -%}\n{%-endgeneration+%}", "{%- with -%}\n{%-endwith+%}"),
            ("{# {% generation %} [::1] #}", "{# {% generation %} [::1] #}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (
                "{% raw %}{{ {% generation %}{{ a[::1] }}{% endraw %}{% generation %}",
                "{% raw +%}{{ {% generation %}{{ a[::1] }}{% endraw %}{% with %}",
            ),
            ("{%- raw -%}{%", "{%- raw -%}{%"),
            ("{% set generation = 1 %}{ {a {%", "{% set generation = 1 %}{ {a {%"),
            ("{{ a[::-1] }}", "{{ a.__slice__(none, none, -1) }}"),
            ("{% if a[b[1:2:3][0]:{'x': 1}.x:] %}", "{% if a.__slice__(b.__slice__(1, 2, 3)[0], {'x': 1}.x, none) %}"),
            ("{{ a[1:] ~ '[::2]' ~ \"\\\"[::2]\" }} [::2]", "{{ a[1:] ~ '[::2]' ~ \"\\\"[::2]\" }} [::2]"),
            ("a\r\nb\rc\n", "a\nb\nc\n"),
            ("", ""),
        ] {
            assert_eq!(prepare(source), expected, "{source}");
        }
    }

    proptest! {
        #[test]
        fn any_source_is_survived_and_keeps_its_lines(source in "([{}%#\\[\\]:'\" a\n-]|raw|endraw|generation|\\PC){0,40}") {
            prop_assert_eq!(prepare(&source).lines().count(), source.lines().count());
        }
    }
}
