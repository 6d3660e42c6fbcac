//! Which files exact mode deletes; the plan asks, and its changes ask again.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::batch::Rules;
use super::reading::{exempt, is_old};
use super::round_file::EXEMPT;
use crate::jobs::account_state::Accounts;
use crate::plan::report::Exempt;
use crate::synapse::File;
use crate::values::glob::{Glob, Matched, Selection as Selected, UserGlob, select, unmatched};
use crate::values::schema::text_values;

/// A media type or a glob over media types, whose case does not matter.
#[derive(Debug, Clone)]
pub struct MediaTypeGlob(Glob);

impl FromStr for MediaTypeGlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(['/', '*']) {
            return Err(format!(
                "{text:?} cannot match any media type: expected a type or a glob such as \"{text}/*\""
            ));
        }
        let Ok(glob) = text.to_lowercase().parse();
        Ok(Self(glob))
    }
}

text_values! { MediaTypeGlob: "a media type or a glob such as \"image/*\""; }

/// The keys of exact mode; an empty list of what to delete stands for everything.
#[derive(Debug)]
pub(super) struct Selection {
    pub users: Vec<UserGlob>,
    pub except_users: Vec<UserGlob>,
    pub accounts: Option<Accounts>,
    pub media_types: Vec<MediaTypeGlob>,
    pub except_media_types: Vec<MediaTypeGlob>,
    pub upload_names: Vec<Glob>,
}

/// Which patterns have matched something so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    users: Matched,
    media_types: Matched,
    upload_names: Matched,
}

impl Seen {
    pub fn merge(&mut self, other: &Self) {
        self.users.merge(&other.users);
        self.media_types.merge(&other.media_types);
        self.upload_names.merge(&other.upload_names);
    }
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Delete,
    /// Selected, and left alone.
    Keep(Exempt),
    NotSelected,
}

impl Selection {
    /// Whether the account is one whose files are deleted, apart from its state.
    pub fn names_user(&self, user_id: &str, seen: &mut Seen) -> bool {
        let Self { users, except_users: except, .. } = self;
        if users.is_empty() {
            return select(user_id, except, &[], &mut seen.users) == Selected::Unmatched;
        }
        select(user_id, users, except, &mut seen.users) == Selected::Chosen
    }

    /// Judges a file by what its list shows, which is not whether it is in use.
    pub fn judge(&self, file: &File, rules: Rules, seen: &mut Seen) -> Verdict {
        if !is_old(file, rules) {
            return Verdict::NotSelected;
        }
        match self.names_file(file, seen) {
            Selected::Unmatched => return Verdict::NotSelected,
            Selected::Excluded => return Verdict::Keep(Exempt::Excluded),
            Selected::Chosen => {}
        }
        if file.url_cache.is_some() {
            return Verdict::Keep(Exempt::UrlPreview);
        }
        match exempt(file) {
            Some(reason) => Verdict::Keep(EXEMPT[reason]),
            None => Verdict::Delete,
        }
    }

    fn names_file(&self, file: &File, seen: &mut Seen) -> Selected {
        let name = file.upload_name.as_deref().unwrap_or_default();
        let names = self.upload_names.iter().map(|glob| glob.matches(name));
        let is_named = record(names, 0, &mut seen.upload_names) || self.upload_names.is_empty();
        // Without parameters such as `charset=utf-8`.
        let media_type = file.media_type.as_deref().unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_lowercase();
        let matches = |glob: &MediaTypeGlob| glob.0.matches(&media_type);
        let included = record(self.media_types.iter().map(matches), 0, &mut seen.media_types);
        let first = self.media_types.len();
        let excluded =
            record(self.except_media_types.iter().map(matches), first, &mut seen.media_types);
        match is_named && (included || self.media_types.is_empty()) {
            false => Selected::Unmatched,
            true if excluded => Selected::Excluded,
            true => Selected::Chosen,
        }
    }

    /// Notes which patterns matched nothing, which is only known once the round is complete.
    pub fn notes(&self, seen: &Seen) -> Vec<String> {
        let mut notes = Vec::new();
        for pattern in unmatched(&self.users, &self.except_users, &seen.users) {
            notes.push(format!("`{pattern}` matched no account with files"));
        }
        let media_types = self.media_types.iter().chain(&self.except_media_types);
        let media_types = media_types.map(|glob| glob.0.text.as_str());
        let upload_names = self.upload_names.iter().map(|glob| glob.text.as_str());
        let files = [
            (media_types.collect::<Vec<_>>(), &seen.media_types),
            (upload_names.collect(), &seen.upload_names),
        ];
        for (patterns, matched) in files {
            let unmatched =
                patterns.iter().enumerate().filter(|(index, _)| !matched.contains(*index));
            notes.extend(unmatched.map(|(_, pattern)| format!("`{pattern}` matched no old file")));
        }
        notes
    }
}

/// Records which patterns from the one at `first` on match, and whether any does.
fn record(matches: impl Iterator<Item = bool>, first: usize, seen: &mut Matched) -> bool {
    let mut any = false;
    for (index, _) in matches.enumerate().filter(|(_, matches)| *matches) {
        seen.record(first + index);
        any = true;
    }
    any
}
