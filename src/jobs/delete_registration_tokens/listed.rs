//! A registration token of either server, and whether it is deleted.

use super::deletion::Deletion;
use super::revocation::{Direction, Revocation};
use crate::mas::{self, Resource};
use crate::plan::change::Change;
use crate::plan::report::Exempt;
use crate::synapse::{RegistrationToken, display_line};
use crate::values::clock::Timestamp;
use crate::values::duration::HumanDuration;
use crate::values::text::format_number;

#[derive(Debug)]
pub(super) enum Listed {
    Synapse(RegistrationToken),
    Mas(Resource<mas::RegistrationToken>),
}

/// A token that was used as often as it may be.
pub(super) struct UsedUp {
    pub uses: u64,
    /// `None` where the server does not record it.
    pub since: Option<Timestamp>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Somebody can register with it.
    Valid,
    LeaveAlone {
        reason: Exempt,
        /// When it will have been invalid for long enough.
        due: Option<Timestamp>,
    },
    /// The text says why: `expired on 2026-11-01`.
    Delete(String),
}

impl Listed {
    pub fn of_synapse(tokens: Vec<RegistrationToken>) -> Vec<Self> {
        tokens.into_iter().map(Self::Synapse).collect()
    }

    /// Without those that are revoked, and so as good as deleted.
    pub fn of_mas(tokens: Vec<Resource<mas::RegistrationToken>>) -> Vec<Self> {
        let is_revoked =
            |token: &Resource<mas::RegistrationToken>| token.attributes.revoked_at.is_some();
        tokens.into_iter().filter(|token| !is_revoked(token)).map(Self::Mas).collect()
    }

    /// Identifies the token in the memory.
    pub fn key(&self) -> &str {
        match self {
            Self::Synapse(token) => &token.token,
            Self::Mas(token) => token.id.as_str(),
        }
    }

    pub fn used_up(&self) -> Option<UsedUp> {
        let used_up = |uses, allowed: Option<u64>, since| {
            allowed
                .is_some_and(|allowed| allowed > 0 && uses >= allowed)
                .then_some(UsedUp { uses, since })
        };
        match self {
            Self::Synapse(token) => used_up(token.completed, token.uses_allowed, None),
            Self::Mas(Resource { attributes: token, .. }) => {
                used_up(token.times_used, token.usage_limit, token.last_used_at)
            }
        }
    }

    /// Decides about the token; `used_up_since` is when it was used up, if it is.
    pub fn judge(
        &self,
        used_up_since: Option<Timestamp>,
        unused_for: HumanDuration,
        now: Timestamp,
    ) -> Verdict {
        let (allowed, uses, pending, expiry) = match self {
            Self::Synapse(token) => {
                let expires_at = token
                    .expiry_time
                    .map(|ms| Timestamp::from_timestamp_millis(ms).unwrap_or(Timestamp::MAX_UTC));
                (token.uses_allowed, token.completed, token.pending, expires_at)
            }
            Self::Mas(Resource { attributes: token, .. }) => {
                (token.usage_limit, token.times_used, 0, token.expires_at)
            }
        };
        let expired_at = expiry.filter(|at| *at <= now);
        let is_full = allowed.is_some_and(|allowed| uses.saturating_add(pending) >= allowed);
        if expired_at.is_none() && !is_full {
            return Verdict::Valid;
        }
        let leave_alone = |reason| Verdict::LeaveAlone { reason, due: None };
        if allowed == Some(0) {
            return leave_alone(Exempt::SwitchedOff);
        }
        if pending > 0 {
            return leave_alone(Exempt::PendingRegistration);
        }
        let Some(since) = expired_at.into_iter().chain(used_up_since).min() else {
            return Verdict::Valid;
        };
        let due = since.checked_add_signed(unused_for.as_chrono()).unwrap_or(Timestamp::MAX_UTC);
        if due > now {
            return Verdict::LeaveAlone { reason: Exempt::RecentlyInvalid, due: Some(due) };
        }
        let date = |at: Timestamp| at.format("%Y-%m-%d");
        let uses = match allowed {
            Some(allowed) => format!("{} of {} uses", format_number(uses), format_number(allowed)),
            None => format!("{} uses", format_number(uses)),
        };
        Verdict::Delete(match expired_at {
            Some(at) => format!("expired on {}, {uses}", date(at)),
            None => format!("used up, {uses}, by {}", date(since)),
        })
    }

    /// The change that deletes or revokes the token; the error is its name, and why there is no change.
    pub fn removal(self, why: &str) -> Result<Box<dyn Change>, (String, &'static str)> {
        match self {
            Self::Synapse(token) if matches!(token.token.as_str(), "" | "." | "..") => Err((
                format!("\"{}\"", token.token),
                "its name cannot be part of a URL, so that no request can be about it",
            )),
            Self::Synapse(token) => {
                // A token that is invalid is no secret any more, and the plan has to be exact.
                let target = format!("{} ({why})", display_line(&token.token, MAX_CHARS));
                Ok(Box::new(Deletion { token, target }))
            }
            Self::Mas(Resource { id, attributes: token }) => {
                let created = token.created_at.format("%Y-%m-%d");
                let name = display_line(&token.token, MAX_CHARS);
                let target = format!("{name} (created on {created}, {why}, id {id})");
                let direction = Direction::Revoke { planned: Some(token) };
                Ok(Box::new(Revocation { id, target, direction }))
            }
        }
    }

    /// The beginning of the token: somebody may be able to register with it later.
    pub fn abbreviated(&self) -> String {
        let token = match self {
            Self::Synapse(token) => &token.token,
            Self::Mas(token) => &token.attributes.token,
        };
        let shown = (token.chars().count() / 3).min(4);
        format!("{}…", display_line(&token.chars().take(shown).collect::<String>(), MAX_CHARS))
    }
}

/// Synapse's own tokens have 64 at most.
const MAX_CHARS: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;
    const NOW_MS: i64 = 1_780_000_000_000;

    fn at(days_ago: i64) -> Timestamp {
        Timestamp::from_timestamp_millis(NOW_MS - days_ago * DAY_MS).unwrap()
    }

    /// Judges a token that may be used `allowed` times, was `completed` times, and expires so many days ago.
    fn judge(
        allowed: Option<u64>,
        (pending, completed): (u64, u64),
        expired: Option<i64>,
    ) -> String {
        let token = RegistrationToken {
            token: "abcdefgh".to_owned(),
            uses_allowed: allowed,
            pending,
            completed,
            expiry_time: expired.map(|days| at(days).timestamp_millis()),
        };
        let token = Listed::Synapse(token);
        let seen = token.used_up().map(|_| at(40));
        match token.judge(seen, HumanDuration::days(30), at(0)) {
            Verdict::Valid => "valid".to_owned(),
            Verdict::LeaveAlone { reason, due } => {
                format!("{reason}{}", due.map(|_| ", due later").unwrap_or_default())
            }
            Verdict::Delete(why) => format!("deleted: {why}"),
        }
    }

    #[test]
    fn a_token_is_deleted_only_if_nobody_can_register_with_it() {
        let table = [
            (None, (0, 5), None, "valid"),
            (Some(3), (0, 2), None, "valid"),
            (Some(3), (0, 2), Some(-1), "valid"),
            (Some(3), (1, 1), None, "valid"),
            (Some(3), (0, 3), None, "deleted: used up, 3 of 3 uses, by 2026-04-18"),
            (Some(3), (0, 4), None, "deleted: used up, 4 of 3 uses, by 2026-04-18"),
            (Some(3), (1, 2), None, "pending-registration"),
            (Some(3), (1, 3), None, "pending-registration"),
            (Some(0), (0, 0), None, "switched-off"),
            (Some(0), (0, 0), Some(100), "switched-off"),
            (Some(0), (0, 2), None, "switched-off"),
            (None, (0, 0), Some(30), "deleted: expired on 2026-04-28, 0 uses"),
            (None, (0, 0), Some(29), "recently-invalid, due later"),
            (None, (1, 0), Some(100), "pending-registration"),
            // Used up for long, and expired not long ago.
            (Some(1), (0, 1), Some(1), "deleted: expired on 2026-05-27, 1 of 1 uses"),
        ];
        for (allowed, uses, expired, expected) in table {
            assert_eq!(judge(allowed, uses, expired), expected, "{allowed:?} {uses:?} {expired:?}");
        }
    }

    #[test]
    fn a_token_that_may_become_valid_again_is_not_shown_in_full() {
        let shown = |name: &str| {
            let token = RegistrationToken {
                token: name.to_owned(),
                uses_allowed: Some(0),
                pending: 0,
                completed: 0,
                expiry_time: None,
            };
            Listed::Synapse(token).abbreviated()
        };
        assert_eq!(["", "ab", "abc", "abcdefghijklmnop"].map(shown), ["…", "…", "a…", "abcd…"]);
    }
}
