//! Whether an account counts as unused.

use super::keys::Keys;
use crate::values::clock::Timestamp;

/// What is known of the use of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Recently, or the account is too young to tell.
    Recent,
    /// Not for long, or never, where the keys include that.
    LongAgo,
    /// Nobody knows when, if ever.
    Unknown,
}

impl Keys {
    /// Judges by the newest use that is known, as of `now`. An account whose age is unknown counts as young if no use is
    /// known either.
    pub fn judge(
        &self,
        last_seen_at: Option<Timestamp>,
        created_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Use {
        let limit = now - self.inactive_for.as_chrono();
        if created_at.is_some_and(|created| created > limit) {
            return Use::Recent;
        }
        match (last_seen_at, self.never_used_after) {
            (Some(seen), _) if seen > limit => Use::Recent,
            (Some(_), _) => Use::LongAgo,
            (None, None) => Use::Unknown,
            (None, Some(after)) => match created_at {
                None => Use::Unknown,
                Some(created) if created > now - after.as_chrono() => Use::Recent,
                Some(_) => Use::LongAgo,
            },
        }
    }
}

/// `@a:hs (last used 2026-01-02)`.
pub(super) fn describe(
    user_id: &str,
    last_seen_at: Option<Timestamp>,
    created_at: Option<Timestamp>,
) -> String {
    let day = |at: Timestamp| at.format("%Y-%m-%d");
    match (last_seen_at, created_at) {
        (Some(seen), _) => format!("{user_id} (last used {})", day(seen)),
        (None, Some(created)) => format!("{user_id} (no known use, created {})", day(created)),
        (None, None) => format!("{user_id} (no known use)"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::job::Job;
    use super::super::LockInactiveAccounts;
    use super::*;
    use crate::values::schema::Table;

    fn keys(text: &str) -> Keys {
        let document = toml::de::DeTable::parse(text).unwrap();
        let table = Table::new(document.get_ref(), 0..0);
        let job = LockInactiveAccounts::read(&table, Timestamp::default(), &mut Vec::new());
        (*job.unwrap().keys).clone()
    }

    fn days_ago(days: Option<i64>) -> Option<Timestamp> {
        days.map(|days| now() - chrono::TimeDelta::days(days))
    }

    fn now() -> Timestamp {
        Timestamp::from_timestamp(1_795_000_000, 0).unwrap()
    }

    #[test]
    fn an_account_is_unused_only_if_that_is_known_and_it_is_old_enough() {
        use Use::{LongAgo, Recent, Unknown};
        let plain = keys("inactive_for = \"90d\"");
        let never = keys("inactive_for = \"90d\"\nnever_used_after = \"200d\"");
        // last seen, created, without and with `never_used_after`
        for (seen, created, expected) in [
            (Some(10), Some(1000), [Recent; 2]),
            (Some(89), Some(1000), [Recent; 2]),
            (Some(91), Some(1000), [LongAgo; 2]),
            // The clock of somebody else was wrong, or an account was imported.
            (Some(91), Some(10), [Recent; 2]),
            (Some(-10), Some(1000), [Recent; 2]),
            (Some(91), None, [LongAgo; 2]),
            (None, Some(10), [Recent; 2]),
            (None, Some(150), [Unknown, Recent]),
            (None, Some(201), [Unknown, LongAgo]),
            (None, None, [Unknown; 2]),
        ] {
            let (seen, created) = (days_ago(seen), days_ago(created));
            let judged = [&plain, &never].map(|keys| keys.judge(seen, created, now()));
            assert_eq!(judged, expected, "{seen:?} {created:?}");
        }
    }
}
