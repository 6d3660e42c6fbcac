//! The rooms of `src`: who may import whom, and that no files need each other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From the ground up: a room imports only from rooms that stand before it.
const ROOMS: &[&str] = &[
    "values",
    "http",
    "mas",
    "synapse",
    "plan",
    "jobs",
    "history",
    "config",
    "observe",
    "runner",
    "scheduler",
    "notify",
    "web",
    "daemon",
    "cli",
    "lib",
    "main",
];

#[test]
fn a_room_imports_only_from_rooms_below_it() {
    let house = House::of(sources());
    let mut wrong = Vec::new();
    for (file, imported) in house.imports() {
        let (from, to) = (room(&file), room(&imported));
        if from != to && floor(to) >= floor(from) {
            wrong.push(format!("{file} imports from {imported}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_room_is_known_and_every_known_room_exists() {
    let house = House::of(sources());
    let there: BTreeSet<&str> = house.files.keys().map(|file| room(file)).collect();
    assert_eq!(there, ROOMS.iter().copied().collect(), "src on the left, ROOMS on the right");
}

#[test]
fn no_two_files_import_each_other() {
    assert_eq!(House::of(sources()).circles(), [""; 0]);
}

/// The targets of log lines, which people filter by: `src/observe.rs` says what each is for.
const LOG_TARGETS: &[&str] =
    &["audit", "config", "daemon", "history", "homeserver", "notification", "run", "scheduler"];

#[test]
fn every_log_line_has_a_target_that_stays_when_code_moves() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for level in ["trace", "debug", "info", "warn", "error"] {
            for (at, call) in text.match_indices(&format!("tracing::{level}!(")) {
                let arguments = text[at + call.len()..].trim_start();
                let target = arguments.strip_prefix("target: \"microglia::");
                let target = target.and_then(|rest| rest.split('"').next());
                if target.is_none_or(|target| !LOG_TARGETS.contains(&target)) {
                    wrong.push(format!("{file}: {}", arguments.lines().next().unwrap_or_default()));
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn imports_are_found_however_they_are_written() {
    let house = House::of(BTreeMap::from([
        ("values".to_owned(), "pub mod clock;\npub mod size;".to_owned()),
        ("values/clock".to_owned(), "pub fn now() {}".to_owned()),
        ("values/size".to_owned(), "use super::clock::now; // use crate::plan::Plan;".to_owned()),
        (
            "synapse".to_owned(),
            "mod error; mod media;\npub use error::Error;\nfn flag() {}".to_owned(),
        ),
        ("synapse/error".to_owned(), "macro_rules! m { () => { $crate::values::clock::now() } }".to_owned()),
        (
            "synapse/media".to_owned(),
            "use super::{Error, flag};\nfn f() { self::g(); crate::values::size::h(\"crate::plan\") }\n\
             #[cfg(test)]\nmod tests { use crate::main::main; }"
                .to_owned(),
        ),
        (
            "plan".to_owned(),
            "use crate::{synapse::{self, Error}, values::{clock::{now, Clock}}};".to_owned(),
        ),
        ("main".to_owned(), "fn main() { microglia::cli::main() }".to_owned()),
    ]));
    let found: Vec<String> =
        house.imports().into_iter().map(|(from, to)| format!("{from} > {to}")).collect();
    assert_eq!(
        found,
        [
            "plan > synapse",
            "plan > synapse/error",
            "plan > values/clock",
            "synapse/error > values/clock",
            "synapse/media > synapse",
            "synapse/media > synapse/error",
            "synapse/media > values/size",
            "values/size > values/clock",
        ]
    );
}

#[test]
fn a_cycle_over_several_files_is_found() {
    let house = House::of(BTreeMap::from([
        ("cli".to_owned(), "mod a; mod b; mod c; mod d;".to_owned()),
        ("cli/a".to_owned(), "use super::b::B;".to_owned()),
        ("cli/b".to_owned(), "fn f() { super::c::g() }".to_owned()),
        ("cli/c".to_owned(), "use crate::cli::a::A;".to_owned()),
        ("cli/d".to_owned(), "use super::a::A;".to_owned()),
    ]));
    assert_eq!(house.circles(), ["cli/a, cli/b, cli/c"]);
}

/// The part of a file's name that names its room.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap()
}

fn floor(room: &str) -> usize {
    ROOMS.iter().position(|known| *known == room).unwrap_or_else(|| panic!("no room {room}"))
}

/// Every file of `src` without its ending, and its text; tests beside the code are left out.
fn sources() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut dirs) = (BTreeMap::new(), vec![src.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && path.file_stem().is_some_and(|name| name != "tests")
            {
                let file = path.strip_prefix(&src).unwrap().with_extension("");
                found.insert(
                    file.to_str().unwrap().to_owned(),
                    std::fs::read_to_string(&path).unwrap(),
                );
            }
        }
    }
    found
}

struct House {
    files: BTreeMap<String, File>,
}

struct File {
    /// Every path that the file's code names, from the root of the crate.
    paths: BTreeSet<Vec<String>>,
    /// What other files find here that is defined elsewhere: its name, and its path.
    reexports: BTreeMap<String, Vec<String>>,
}

impl House {
    fn of(sources: BTreeMap<String, String>) -> Self {
        let files = sources.into_iter().map(|(name, text)| {
            let file = File::read(&name, &text);
            (name, file)
        });
        Self { files: files.collect() }
    }

    /// Who imports whom, file by file.
    fn imports(&self) -> BTreeSet<(String, String)> {
        let of_file = |(name, file): (&String, &File)| {
            let imported = file.paths.iter().filter_map(|path| self.defining(path, 0));
            imported
                .filter(|imported| imported != name)
                .map(|imported| (name.clone(), imported))
                .collect::<Vec<_>>()
        };
        self.files.iter().flat_map(of_file).collect()
    }

    /// The file that defines what a path names.
    fn defining(&self, path: &[String], depth: u32) -> Option<String> {
        let (file, rest) = (1..=path.len())
            .rev()
            .map(|length| (path[..length].join("/"), &path[length..]))
            .find(|(file, _)| self.files.contains_key(file))?;
        let reexported = rest.first().and_then(|name| self.files[&file].reexports.get(name));
        match reexported {
            Some(target) if depth < 8 => {
                let target: Vec<String> = target.iter().chain(&rest[1..]).cloned().collect();
                self.defining(&target, depth + 1)
            }
            _ => Some(file),
        }
    }

    /// The groups of files that need each other.
    fn circles(&self) -> Vec<String> {
        let imports = self.imports();
        let reached = |start: &String| {
            let (mut reached, mut left) = (BTreeSet::new(), vec![start.clone()]);
            while let Some(file) = left.pop() {
                for (_, to) in imports.iter().filter(|(from, _)| *from == file) {
                    if reached.insert(to.clone()) {
                        left.push(to.clone());
                    }
                }
            }
            reached
        };
        let reach: BTreeMap<&String, BTreeSet<String>> =
            self.files.keys().map(|file| (file, reached(file))).collect();
        let groups: BTreeSet<Vec<&str>> = self
            .files
            .keys()
            .filter(|file| reach[file].contains(*file))
            .map(|file| {
                let others = reach[file].iter().filter(|other| reach[other].contains(file));
                others.map(String::as_str).collect()
            })
            .collect();
        groups.into_iter().map(|group| group.join(", ")).collect()
    }
}

impl File {
    fn read(name: &str, text: &str) -> Self {
        let code = code(text);
        let module: Vec<String> = match name {
            "lib" | "main" => vec![],
            name => name.split('/').map(str::to_owned).collect(),
        };
        let children: BTreeSet<String> = declarations(&code, "mod ")
            .filter(|(_, rest)| rest.trim_start().starts_with(';'))
            .map(|(name, _)| name)
            .collect();
        let absolute = |path: Vec<String>| absolute(&module, &children, path);
        let mut file = Self { paths: BTreeSet::new(), reexports: BTreeMap::new() };
        let mut left = code.as_str();
        let mut rest = String::new();
        while let Some((before, from)) = split_at_use(left) {
            rest.push_str(before);
            let (tree, after) = from.split_once(';').unwrap_or((from, ""));
            let is_reexport = before.trim_end().ends_with("pub")
                || before.trim_end().ends_with("pub(crate)")
                || before.trim_end().ends_with("pub(super)");
            for path in expanded(tree) {
                let Some(path) = absolute(path) else { continue };
                match (is_reexport, path.last()) {
                    (true, Some(last)) => {
                        file.reexports.insert(last.clone(), path.clone());
                    }
                    _ => {
                        file.paths.insert(path);
                    }
                }
            }
            left = after;
        }
        rest.push_str(left);
        file.paths.extend(inline_paths(&rest, &children).into_iter().filter_map(absolute));
        file
    }
}

/// A path from the root of the crate; `None` where it leads out of it.
fn absolute(
    module: &[String],
    children: &BTreeSet<String>,
    path: Vec<String>,
) -> Option<Vec<String>> {
    let mut segments = path.into_iter().peekable();
    let mut from: Vec<String> = match segments.peek()?.as_str() {
        "crate" | "$crate" => {
            segments.next();
            Vec::new()
        }
        "self" => {
            segments.next();
            module.to_vec()
        }
        "super" => module.to_vec(),
        name if children.contains(name) => module.to_vec(),
        _ => return None,
    };
    while segments.peek().is_some_and(|segment| segment == "super") {
        segments.next();
        from.pop();
    }
    from.extend(segments.filter(|segment| segment != "self"));
    Some(from)
}

/// The text before the next `use`, and what follows it.
fn split_at_use(code: &str) -> Option<(&str, &str)> {
    let mut start = 0;
    while let Some(found) = code[start..].find("use ") {
        let at = start + found;
        if code[..at]
            .chars()
            .next_back()
            .is_none_or(|before| before.is_whitespace() || before == '{')
        {
            return Some((&code[..at], &code[at + 4..]));
        }
        start = at + 4;
    }
    None
}

/// `a::{b, c::{self, d}}` as `a::b`, `a::c`, `a::c::d`.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap();
        let segments = path.split("::").map(|segment| segment.trim().to_owned());
        return vec![segments.filter(|segment| !segment.is_empty() && segment != "*").collect()];
    };
    let head: Vec<String> = head
        .split("::")
        .map(|segment| segment.trim().to_owned())
        .filter(|segment| !segment.is_empty())
        .collect();
    let group = &group[..group.rfind('}').unwrap_or(group.len())];
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts
        .into_iter()
        .filter(|part| !part.trim().is_empty())
        .flat_map(expanded)
        .map(|part| head.iter().cloned().chain(part).collect())
        .collect()
}

/// Paths in the code itself, such as `super::clock::now()` or `error::excerpt(body)`.
fn inline_paths(code: &str, children: &BTreeSet<String>) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let mut found = Vec::new();
    let mut chars = code.char_indices().peekable();
    let mut before = ' ';
    while let Some((start, c)) = chars.next() {
        if !is_word(c) || is_word(before) || before == ':' {
            before = c;
            continue;
        }
        let rest = &code[start..];
        let length = rest.find(|c: char| !is_word(c) && c != ':').unwrap_or(rest.len());
        let path: Vec<String> = rest[..length]
            .split("::")
            .map(|segment| segment.trim_matches(':').to_owned())
            .collect();
        let first = path[0].as_str();
        if path.len() > 1
            && (["crate", "$crate", "super", "self"].contains(&first) || children.contains(first))
        {
            found.push(path.into_iter().filter(|segment| !segment.is_empty()).collect());
        }
        while chars.peek().is_some_and(|(at, _)| *at < start + length) {
            chars.next();
        }
        before = 'x';
    }
    found
}

/// The names that follow a keyword, each with the text behind it.
fn declarations<'a>(code: &'a str, keyword: &'a str) -> impl Iterator<Item = (String, &'a str)> {
    code.match_indices(keyword).map(move |(at, _)| {
        let rest = &code[at + keyword.len()..];
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (rest[..length].to_owned(), &rest[length..])
    })
}

/// The code of a file without comments, texts and tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut code = String::new();
    for line in text.lines() {
        let (mut in_text, mut escaped, mut last) = (false, false, ' ');
        for c in line.chars() {
            if !in_text && last == '/' && c == '/' {
                code.pop();
                break;
            }
            if c == '"' && !escaped && last != '\'' {
                in_text = !in_text;
            } else if !in_text {
                code.push(c);
            }
            escaped = in_text && c == '\\' && !escaped;
            last = c;
        }
        code.push('\n');
    }
    code
}
