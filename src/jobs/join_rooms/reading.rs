//! Reads the accounts page by page, and decides who is joined to which room.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;

use super::join::{Join, target};
use super::keys::Keys;
use super::rooms::{RoomError, TargetRoom, chain, check_access};
use crate::jobs::account::{as_ghost, known_ghosts};
use crate::jobs::job::{Context, PlanError};
use crate::jobs::mas_accounts::GoneAccounts;
use crate::jobs::portion::{Next, PortionProgress, in_order};
use crate::plan::change::Plan;
use crate::plan::facts::Fact;
use crate::plan::report::Exempt;
use crate::synapse::{self, Identity, Position, User, UserPage, UserRow, Version};
use crate::values::glob::{Matched, Selection, select};

/// A portion of the accounts while it is read.
pub(super) struct Reading<'a> {
    pub keys: &'a Keys,
    pub context: &'a Context<'a>,
    pub identity: &'a Identity,
    pub gone: GoneAccounts,
    pub rooms: Vec<TargetRoom>,
    /// The patterns that have matched an account in this round.
    pub matched: Matched,
    pub progress: PortionProgress<'a>,
    pub changes: Vec<Join>,
}

/// What decides about an account that is missing in some room.
enum Record {
    /// In all rooms, or ruled out by its row or by what is known of it.
    NotRead,
    Read(Result<User, synapse::Error>),
}

impl Reading<'_> {
    pub async fn page(
        &mut self,
        page: UserPage,
        ends_list: bool,
        plan: &mut Plan,
    ) -> Result<Next, PlanError> {
        let UserPage { rows, offset, total } = page;
        self.progress.set_total(total);
        let ghosts = known_ghosts(self.context, &rows).await;
        self.complete_rooms(&rows, plan).await?;
        let last = rows.len().checked_sub(1).filter(|_| ends_list);
        let (keys, context, identity) = (self.keys, self.context, self.identity);
        let to_read: HashSet<String> = rows
            .iter()
            .filter(|row| keys.is_chosen(row, identity) && !ghosts.contains_key(&row.name))
            .filter(|row| self.gone.exempt(&row.name).is_none())
            .filter(|row| !self.missing_in(&row.name).is_empty())
            .map(|row| row.name.clone())
            .collect();
        let mut records = std::pin::pin!(in_order(rows, context, |row| {
            let to_read = &to_read;
            async move {
                let record = match to_read.contains(&row.name) {
                    true => Record::Read(context.reader.user(&row.name).await),
                    false => Record::NotRead,
                };
                (row, record)
            }
        }));
        let (mut found, mut next) = (Vec::new(), Next::Read);
        while next == Next::Read
            && let Some((index, (row, record))) = records.next().await
        {
            let joins = match self.judge(&row, record, &ghosts, &mut found)? {
                Verdict::Join(exempt) => self.join(&row.name, exempt, plan).await?,
                Verdict::LeaveAlone(exempt) => self.leave_alone(&row.name, exempt, plan),
                Verdict::Ignore => 0,
            };
            let after = Position { after: row.name, offset: offset + index as u64 + 1 };
            next = self.progress.advance(after, &vec![1; joins], Some(index) == last);
            let (read, total) = self.progress.figures();
            context.reading("accounts", read, total);
        }
        context.facts.store(found).await;
        Ok(match next {
            Next::Read => self.progress.end_page(),
            Next::Stop => Next::Stop,
        })
    }

    /// The indices of the rooms that the account is not in.
    fn missing_in(&self, user_id: &str) -> Vec<usize> {
        let rooms = self.rooms.iter().enumerate();
        rooms
            .filter(|(_, room)| room.is_usable() && !room.open.members.contains(user_id))
            .filter(|(_, room)| {
                room.chain.as_ref().is_none_or(|chain| self.keys.may_join(chain, user_id).is_ok())
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Reads who left and who may invite, for each room that some account of the page is not in.
    async fn complete_rooms(&mut self, rows: &[UserRow], plan: &mut Plan) -> Result<(), PlanError> {
        let (keys, identity, reader) = (self.keys, self.identity, self.context.reader);
        for room in self.rooms.iter_mut().filter(|room| room.is_usable() && room.chain.is_none()) {
            let is_missing = |row: &&UserRow| !room.open.members.contains(&row.name);
            if !rows.iter().filter(is_missing).any(|row| keys.is_chosen(row, identity)) {
                continue;
            }
            let complete = async {
                let permissions = reader.permissions(&room.open.room_id).await?;
                let predecessor = permissions.predecessor.clone();
                let chain = chain(reader, &room.open, predecessor).await?;
                Ok::<_, RoomError>((permissions, chain))
            };
            match complete.await {
                Ok((permissions, chain)) => {
                    (room.permissions, room.chain) = (Some(permissions), Some(chain));
                }
                Err(RoomError::Room(problem)) => room.fail(problem, plan),
                Err(RoomError::Run(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    fn judge(
        &mut self,
        row: &UserRow,
        record: Record,
        ghosts: &HashMap<String, String>,
        found: &mut Vec<Fact>,
    ) -> Result<Verdict, PlanError> {
        let Keys { users, except_users, .. } = self.keys;
        let exempt = match select(&row.name, users, except_users, &mut self.matched) {
            Selection::Unmatched => return Ok(Verdict::Ignore),
            Selection::Excluded => Some(Exempt::Excluded),
            Selection::Chosen => {
                let exempt = self.keys.exempt(row, self.identity);
                exempt.or_else(|| self.gone.exempt(&row.name))
            }
        };
        let ghost = || ghosts.contains_key(&row.name).then_some(Exempt::Bridge);
        if let Some(exempt) = exempt.or_else(ghost) {
            return Ok(Verdict::LeaveAlone(exempt));
        }
        let user = match record {
            Record::NotRead => return Ok(Verdict::Join(None)),
            // The account was deleted meanwhile.
            Record::Read(Err(error)) if error.is_not_found() => return Ok(Verdict::Ignore),
            Record::Read(user) => user?,
        };
        found.extend(as_ghost(&user));
        Ok(Verdict::Join(self.keys.exempt_by_record(&user, self.identity)))
    }

    /// Counts an account in each room that it is not in; returns the number of joins, none.
    fn leave_alone(&self, user_id: &str, exempt: Exempt, plan: &mut Plan) -> usize {
        for room in self.rooms.iter().filter(|room| room.is_usable()) {
            if !room.open.members.contains(user_id) {
                plan.leave_alone(exempt, || target(user_id, &room.name));
            }
        }
        0
    }

    /// Plans the joins of an account, and returns their number; none if its record exempts it.
    async fn join(
        &mut self,
        user_id: &str,
        exempt: Option<Exempt>,
        plan: &mut Plan,
    ) -> Result<usize, PlanError> {
        let mut joins = 0;
        for room in self.rooms.iter_mut().filter(|room| room.is_usable()) {
            if room.open.members.contains(user_id) {
                continue;
            }
            let chain = room.chain.as_deref().unwrap_or_default();
            if let Some(exempt) = self.keys.may_join(chain, user_id).err().or(exempt) {
                plan.leave_alone(exempt, || target(user_id, &room.name));
                continue;
            }
            let planned_membership =
                chain.first().and_then(|events| events.get(user_id)).map(|event| event.membership);
            check_access(self.context.reader, self.identity, room, plan).await?;
            if !room.is_usable() {
                continue;
            }
            room.joins += 1;
            joins += 1;
            self.changes.push(Join {
                user_id: user_id.to_owned(),
                planned_membership,
                room: room.name.clone(),
                room_id: room.open.room_id.clone(),
                per_second: self.keys.joins_per_second.0,
                can_check_membership: self.identity.version >= Version(1, 145),
            });
        }
        Ok(joins)
    }
}

/// What to do with an account of the list.
enum Verdict {
    /// Join it to the rooms that it is not in, unless its record exempts it.
    Join(Option<Exempt>),
    /// Its row, or what is known of it, exempts it.
    LeaveAlone(Exempt),
    Ignore,
}
