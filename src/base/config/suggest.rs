//! Help with a mistyped key: what exists, the most similar first.

use super::keys;
use super::value::shortened;

/// Says that a key does not exist and which do, the most similar first.
pub fn unknown(path: &str) -> String {
    let shown = shortened(path);
    let (section, key) = path.split_once('.').unwrap_or((path, ""));
    if !keys::sections().contains(&section) {
        let list = by_similarity(section, keys::sections()).join(", ");
        return format!("unknown section in {shown}; the sections are {list}");
    }
    let list = by_similarity(key, keys::keys_of(section)).join(", ");
    let elsewhere = keys::KEYS.iter().find(|k| k.path.split_once('.').is_some_and(|(_, known)| known == key));
    let hint = elsewhere.map_or_else(String::new, |k| format!(" ({} exists)", k.path));
    format!("unknown key {shown}{hint}; the keys of {section} are {list}")
}

fn by_similarity(typed: &str, mut names: Vec<&'static str>) -> Vec<&'static str> {
    let typed: Vec<char> = typed.chars().take(64).collect();
    names.sort_by_key(|name| edit_distance(&typed, name));
    names
}

/// Levenshtein's distance.
fn edit_distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, cb) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, ca) in a.iter().enumerate() {
            let substituted = diagonal + usize::from(*ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[a.len()]
}
