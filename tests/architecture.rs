//! The floors of the program: a module uses what stands on lower floors, or before it on its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each file of `src`, without its ending, belongs to the module that its path begins with.
const FLOORS: &[(u32, &[&str])] = &[
    (
        0,
        &[
            "words", "escape", "keys", "clock", "glob", "length", "size", "schedule", "agenda",
            "age",
        ],
    ),
    (1, &["report", "state_dir", "synapse", "change"]),
    (2, &["history"]),
    (3, &["job"]),
    (4, &["jobs"]),
    (5, &["config"]),
    (6, &["runner", "telling", "listing", "metrics", "ticker"]),
    (7, &["supervisor"]),
    (8, &["reload", "health", "control", "web"]),
    (9, &["daemon"]),
    (10, &["cli"]),
];

/// Macros that stand at the root of the crate, and the module that they are written in.
const MACROS: &[(&str, &str)] = &[("text_values", "keys"), ("text_quantities", "keys")];

/// What holds the modules together and has nothing else in it.
const ROOTS: &[&str] = &["lib", "main"];

#[test]
fn a_module_uses_only_what_stands_below_it() {
    let mut wrong = Vec::new();
    for (file, module) in modules() {
        let text = std::fs::read_to_string(&file).unwrap();
        for used in used(&text) {
            let below = place(&used).is_some_and(|used| Some(used) < place(&module));
            if used != module && !below {
                wrong.push(format!("{} uses {used}", file.display()));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_file_has_its_floor() {
    let named: BTreeSet<&str> =
        FLOORS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let there: BTreeSet<String> = modules().into_iter().map(|(_, module)| module).collect();
    let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
    assert_eq!(there, named, "files of src on the left, the table of floors on the right");
}

#[test]
fn what_a_file_uses_is_seen_however_it_is_written() {
    let text = "
        use crate::clock::{self, Timestamp};
        use crate::age::Age;
        // use crate::runner;
        fn f() { crate::history::look(crate::length::LONG); $crate::runner! {} }
        crate::text_values! {}
    ";
    let found: Vec<String> = used(text).into_iter().collect();
    assert_eq!(found, ["age", "clock", "history", "keys", "length"]);
}

/// The floor, and the place on it.
fn place(module: &str) -> Option<(u32, usize)> {
    FLOORS.iter().find_map(|(floor, names)| {
        names.iter().position(|name| *name == module).map(|index| (*floor, index))
    })
}

/// Each file of `src` with its module.
fn modules() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut dirs = vec![src.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let relative = path.strip_prefix(&src).unwrap().with_extension("");
                let module = relative.iter().next().unwrap().to_string_lossy().into_owned();
                if !ROOTS.contains(&module.as_str()) {
                    found.push((path, module));
                }
            }
        }
    }
    found.sort();
    found
}

/// The modules that a file's code names after `crate::`; what a macro names, it uses where it is expanded.
fn used(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("crate::") {
            rest = after;
            let name: String =
                after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(
                !name.is_empty(),
                "one `use crate::…` per module, or this test cannot read it: {line}"
            );
            if !before.ends_with('$') {
                let module = MACROS
                    .iter()
                    .find(|(of, _)| *of == name)
                    .map_or(name.as_str(), |(_, module)| *module);
                found.insert(module.to_owned());
            }
        }
    }
    found
}
