//! `{% generation %}` … `{% endgeneration %}`: transformers' own tag, marking what the assistant wrote. It matters in
//! training only; here it becomes a `with` block, which like the original is a scope of its own and, being a block tag,
//! treats the white space around it alike.

/// Jinja2 reads every line ending as `\n`.
pub fn unify_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Rewrites the tags outside comments, expressions and raw blocks. Lines stay where they are, so errors still point right.
pub fn make_transparent(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut in_raw = false;
    while let Some(at) = rest.find('{') {
        let (text, from_brace) = rest.split_at(at);
        out.push_str(text);
        let close = match from_brace.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'#') => "#}",
            Some(b'%') => "%}",
            _ => {
                out.push('{');
                rest = &from_brace[1..];
                continue;
            }
        };
        let len = from_brace[2..].find(close).map_or(from_brace.len(), |found| found + 4);
        let (tag, after) = from_brace.split_at(len);
        rest = after;
        if close != "%}" {
            if in_raw {
                // Inside raw text nothing opens but the end of it.
                out.push_str(&tag[..2]);
                rest = &from_brace[2..];
            } else {
                out.push_str(tag);
            }
            continue;
        }
        let word = word_of(tag);
        match word {
            "raw" => in_raw = true,
            "endraw" => in_raw = false,
            _ => {}
        }
        match (in_raw, word) {
            (false, "generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            (false, "endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tags_themselves_are_rewritten() {
        let cases = [
            ("{% generation %}a{% endgeneration %}", "{% with %}a{% endwith %}"),
            ("{%- generation -%}\n{%-endgeneration+%}", "{%- with -%}\n{%-endwith+%}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (
                "{% raw %}{{ {% generation %}{% endraw %}{% generation %}",
                "{% raw %}{{ {% generation %}{% endraw %}{% with %}",
            ),
            ("{% set generation = 1 %}{ {a {%", "{% set generation = 1 %}{ {a {%"),
            ("", ""),
        ];
        for (source, expected) in cases {
            assert_eq!(make_transparent(source), expected, "{source}");
        }
        assert_eq!(unify_newlines("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
