//! The rooms that spaces bring in.

use std::collections::{HashMap, HashSet};

use super::keys::Keys;
use super::rooms::{NamedRoom, Origin, RoomError, alias_error, resolve};
use crate::jobs::job::PlanError;
use crate::plan::change::Plan;
use crate::plan::report::Action;
use crate::synapse::{Reader, RoomRow};
use crate::values::glob::{Matched, is_glob};
use crate::values::matrix_id::RoomName;
use crate::values::text::{format_count, join_some};

/// More rooms than this are most likely brought in by mistake, and their members would take too much memory.
const MAX_ROOMS: usize = 1000;

/// Reads spaces, and remembers what it learned of rooms that are in several of them.
pub(super) struct Spaces<'a> {
    keys: &'a Keys,
    reader: &'a Reader,
    /// The rooms behind the aliases in `except_rooms`, by the index of the alias.
    excepted: Vec<(usize, String)>,
    /// Which items of `except_rooms` matched something.
    matched: Matched,
    details: HashMap<String, RoomRow>,
    /// Spaces below others whose problem was reported: they may be below several.
    failed: HashSet<String>,
}

/// What a space, and the spaces below it, bring in.
#[derive(Default)]
pub(super) struct SpaceRooms {
    pub rooms: Vec<NamedRoom>,
    /// Spaces that could not be read, and why.
    pub problems: Vec<(String, String)>,
    excepted: Vec<String>,
    /// Rooms that nobody in `allow_creators` created.
    not_allowed: Vec<String>,
    too_deep: Vec<String>,
}

impl<'a> Spaces<'a> {
    pub async fn new(keys: &'a Keys, reader: &'a Reader) -> Result<Self, PlanError> {
        let mut excepted = Vec::new();
        for (index, glob) in keys.except_rooms.iter().enumerate() {
            if !glob.text.starts_with('#') || is_glob(&glob.text) {
                continue;
            }
            match reader.resolve_alias(&glob.text).await {
                Ok(room_id) => excepted.push((index, room_id)),
                Err(error) if error.is_not_found() => {}
                // Users would be joined to a room that is to be left out.
                Err(error) => {
                    return Err(match alias_error(error) {
                        RoomError::Room(problem) => PlanError::Refused(format!(
                            "`except_rooms` names {}, and {problem}",
                            glob.text
                        )),
                        RoomError::Run(failure) => failure,
                    });
                }
            }
        }
        Ok(Self {
            keys,
            reader,
            excepted,
            matched: Matched::default(),
            details: HashMap::new(),
            failed: HashSet::new(),
        })
    }

    /// Reads the rooms of all spaces; what cannot be read becomes a problem of the plan.
    pub async fn plan(mut self, plan: &mut Plan) -> Result<Vec<NamedRoom>, PlanError> {
        let (mut rooms, mut is_complete) = (Vec::new(), true);
        for RoomName(space) in self.keys.spaces() {
            let found = match self.rooms_of(space).await {
                Ok(found) => found,
                Err(RoomError::Room(problem)) => {
                    SpaceRooms { problems: vec![(space.clone(), problem)], ..SpaceRooms::default() }
                }
                Err(RoomError::Run(failure)) => return Err(failure),
            };
            found.note(space, plan);
            is_complete &= found.problems.is_empty() && found.too_deep.is_empty();
            for (space, problem) in found.problems {
                plan.problem(Action::JoinRoom, &space, problem);
            }
            rooms.extend(found.rooms);
        }
        let exceptions = self.keys.except_rooms.iter().enumerate();
        for (_, glob) in
            exceptions.filter(|(index, _)| is_complete && !self.matched.contains(*index))
        {
            plan.notes.push(format!("`{}` in `except_rooms` matched no room", glob.text));
        }
        Ok(rooms)
    }

    /// Reads a space and the spaces below it, level by level, each once.
    pub async fn rooms_of(&mut self, space: &str) -> Result<SpaceRooms, RoomError> {
        let room_id = resolve(self.reader, space, "spaces").await?;
        match self.details(&room_id).await? {
            None => {
                return Err(RoomError::Room("Synapse does not know this space: fix `spaces`; a remote space needs one local member first".to_owned()));
            }
            Some(details) if !details.is_space() => {
                return Err(RoomError::Room("this is not a space: move it to `rooms`".to_owned()));
            }
            Some(_) => {}
        }
        let mut found = SpaceRooms::default();
        let mut visited = HashSet::from([room_id.clone()]);
        let mut level =
            vec![NamedRoom { name: space.to_owned(), id_or_alias: room_id, origin: Origin::Job }];
        for _ in 0..self.keys.max_depth {
            let mut below = Vec::new();
            for space in &level {
                match self.children(space).await {
                    Ok(mut children) => {
                        children.retain(|child| visited.insert(child.clone()));
                        if visited.len() > MAX_ROOMS {
                            return Err(RoomError::Room(format!(
                                "it brings in more than {MAX_ROOMS} rooms: lower `max_depth`, or name smaller spaces in several jobs"
                            )));
                        }
                        for child in children {
                            self.sort(child, &mut found, &mut below).await?;
                        }
                    }
                    Err(RoomError::Room(problem)) => {
                        let NamedRoom { name, id_or_alias, origin } = space;
                        if *origin == Origin::Job || self.failed.insert(id_or_alias.clone()) {
                            found.problems.push((name.clone(), problem));
                        }
                    }
                    Err(failure) => return Err(failure),
                }
            }
            level = below;
        }
        found.too_deep = level.into_iter().map(|space| space.name).collect();
        Ok(found)
    }

    /// The rooms and spaces that a space names. None at all is an error: nothing would be done from then on.
    async fn children(&self, space: &NamedRoom) -> Result<Vec<String>, RoomError> {
        let NamedRoom { id_or_alias: room_id, origin, .. } = space;
        origin.check_replaced(self.reader, room_id, "spaces").await?;
        let children = self.reader.space_children(room_id).await?;
        if children.is_empty() {
            return Err(RoomError::Room(format!(
                "the space names no rooms: add some, let one local user join it if its last local member left, or {}",
                origin.leave_out("spaces")
            )));
        }
        Ok(children)
    }

    /// Decides what becomes of a room that a space names.
    async fn sort(
        &mut self,
        room_id: String,
        found: &mut SpaceRooms,
        below: &mut Vec<NamedRoom>,
    ) -> Result<(), RoomError> {
        let unknown = RoomRow::default();
        self.details(&room_id).await?;
        let details = self.details.get(&room_id).unwrap_or(&unknown);
        // Whoever may edit a room chooses its alias: only the id tells which room it is.
        let name = match &details.canonical_alias {
            Some(alias) => format!("{alias} ({room_id})"),
            None => room_id.clone(),
        };
        let creator = details.creator.as_deref().unwrap_or_default();
        let is_allowed = self.keys.allow_creators.iter().any(|glob| glob.0.matches(creator));
        if is_excepted(self.keys, &self.excepted, &mut self.matched, &room_id, details) {
            found.excepted.push(name);
        } else if details.is_space() {
            below.push(NamedRoom { name, id_or_alias: room_id, origin: Origin::Space });
        } else if is_allowed {
            found.rooms.push(NamedRoom { name, id_or_alias: room_id, origin: Origin::Space });
        } else {
            found.not_allowed.push(name);
        }
        Ok(())
    }

    /// What Synapse says of a room; `None` if it does not know it.
    async fn details(&mut self, room_id: &str) -> Result<Option<&RoomRow>, RoomError> {
        if !self.details.contains_key(room_id) {
            match self.reader.room(room_id).await {
                Ok(details) => {
                    self.details.insert(room_id.to_owned(), details);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.details.get(room_id))
    }
}

/// Records every item of `except_rooms` that matches.
fn is_excepted(
    keys: &Keys,
    aliases: &[(usize, String)],
    matched: &mut Matched,
    room_id: &str,
    details: &RoomRow,
) -> bool {
    let RoomRow { name, canonical_alias, .. } = details;
    let texts = [Some(room_id), canonical_alias.as_deref(), name.as_deref()];
    let mut is_excepted = false;
    for (index, glob) in keys.except_rooms.iter().enumerate() {
        let is_alias = aliases.iter().any(|(of, id)| *of == index && id == room_id);
        if is_alias || texts.iter().flatten().any(|text| glob.matches(text)) {
            matched.record(index);
            is_excepted = true;
        }
    }
    is_excepted
}

impl SpaceRooms {
    /// Notes what the space brings in, and what it does not.
    fn note(&self, space: &str, plan: &mut Plan) {
        let Self { rooms, excepted, not_allowed, too_deep, problems: _ } = self;
        let rooms: Vec<&str> = rooms.iter().map(|room| room.name.as_str()).collect();
        let count = format_count(rooms.len() as u64, "room", "rooms");
        for (what, names) in [
            (format!("{space} brings in {count}"), rooms),
            (format!("`except_rooms` leaves out of {space}"), texts(excepted)),
            (
                format!("nobody in `allow_creators` created these rooms of {space}"),
                texts(not_allowed),
            ),
            (format!("deeper in {space} than `max_depth`, and not read"), texts(too_deep)),
        ] {
            if !names.is_empty() {
                plan.notes.push(format!("{what}: {}", join_some(&names)));
            }
        }
    }
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
