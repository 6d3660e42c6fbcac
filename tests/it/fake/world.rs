//! What the homeserver in memory knows: accounts, rooms, files and settings that a test may change at any time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::mas::Mas;
use super::messages::Message;
use super::registration_tokens::RegistrationToken;
use super::reports::Report;

pub const SERVER_NAME: &str = "fake.test";
/// The access token of the admin account, `@microglia:<server name>`.
pub const TOKEN: &str = "fake-token";

/// 2023-11-14, long before any test runs.
const LONG_AGO_MS: i64 = 1_700_000_000_000;

#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the fake")]
pub struct World {
    pub server_name: String,
    /// Endpoints and parameters newer than this are unknown.
    pub version: String,
    pub mas: bool,
    /// Where `mas` manages the accounts.
    pub auth_service: Mas,
    /// `false`: the main process has no media endpoints; see `Fake::media_worker`.
    pub media_repo: bool,
    /// Added to the real time in `Date` headers.
    pub clock_offset_seconds: i64,
    /// Added to every response; the request is carried out at once.
    pub latency: Duration,
    /// What a media call takes for each file; they vanish one by one.
    pub time_per_file: Duration,
    /// `false`: a long bench does not fill the memory.
    pub record_requests: bool,
    pub tokens: BTreeMap<String, Token>,
    pub users: BTreeMap<String, User>,
    pub rooms: BTreeMap<String, Room>,
    pub remote: BTreeMap<u64, Remote>,
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Deletions of rooms, oldest first.
    pub tasks: Vec<Task>,
    /// Whether `server_notices` is configured.
    pub server_notices: bool,
    /// Whom Synapse told what, oldest first.
    pub notices: Vec<(String, String)>,
    /// The user and the event of each transaction, until Synapse is restarted.
    pub notice_transactions: BTreeMap<String, (String, String)>,
    /// The name of the change of the database schema that is under way.
    pub background_update: Option<String>,
    /// How often a deletion is asked for before it has ended.
    pub polls_per_deletion: u32,
    /// Why deletions fail.
    pub deletion_error: Option<String>,
    pub registration_tokens: BTreeMap<String, RegistrationToken>,
    pub event_reports: BTreeMap<u64, Report>,
    pub user_reports: BTreeMap<u64, Report>,
    files: BTreeMap<String, Media>,
    files_by_owner: BTreeMap<String, BTreeSet<String>>,
    /// Recently read lists, by their request.
    listings: HashMap<String, Arc<Vec<ListedJob>>>,
    /// Synapse's cache of who has which external id, stale for those that were removed.
    lookups: HashMap<(String, String), Option<String>>,
    complaints: Vec<String>,
}

impl World {
    pub fn new() -> Self {
        Self::named(SERVER_NAME)
    }

    pub fn named(server_name: &str) -> Self {
        let mut world = Self {
            server_name: server_name.to_owned(),
            version: "1.163.2".to_owned(),
            mas: false,
            auth_service: Mas::default(),
            media_repo: true,
            clock_offset_seconds: 0,
            latency: Duration::ZERO,
            time_per_file: Duration::ZERO,
            record_requests: true,
            tokens: BTreeMap::new(),
            users: BTreeMap::new(),
            rooms: BTreeMap::new(),
            remote: BTreeMap::new(),
            messages: Vec::new(),
            tasks: Vec::new(),
            server_notices: true,
            notices: Vec::new(),
            notice_transactions: BTreeMap::new(),
            background_update: None,
            polls_per_deletion: 1,
            deletion_error: None,
            registration_tokens: BTreeMap::new(),
            event_reports: BTreeMap::new(),
            user_reports: BTreeMap::new(),
            files: BTreeMap::new(),
            files_by_owner: BTreeMap::new(),
            listings: HashMap::new(),
            lookups: HashMap::new(),
            complaints: Vec::new(),
        };
        let admin = world.admin();
        world.user(&admin).admin = true;
        world.token(TOKEN, &admin).admin_scope = true;
        world
    }

    /// The account that `TOKEN` belongs to.
    pub fn admin(&self) -> String {
        format!("@microglia:{}", self.server_name)
    }

    /// Without MAS the account's `admin` decides what the token may, with MAS the token's scope.
    pub fn token(&mut self, token: &str, user_id: &str) -> &mut Token {
        let new = Token {
            user_id: user_id.to_owned(),
            device_id: None,
            admin_scope: false,
            expired: false,
        };
        self.tokens.entry(token.to_owned()).or_insert(new)
    }

    /// An account, made if it is not there.
    pub fn user(&mut self, user_id: &str) -> &mut User {
        self.users.entry(user_id.to_owned()).or_default()
    }

    /// Makes `@user000000:…` and so on.
    pub fn users(&mut self, count: usize, mut make: impl FnMut(usize) -> User) {
        let server_name = &self.server_name;
        self.users.extend((0..count).map(|i| (format!("@user{i:06}:{server_name}"), make(i))));
    }

    /// Deactivates an account, which leaves its rooms.
    pub fn deactivate(&mut self, user_id: &str, erase: bool) {
        let user = self.user(user_id);
        user.deactivated = true;
        user.erased |= erase;
        user.devices.clear();
        for room in self.rooms.values_mut().filter(|room| room.membership(user_id).is_some()) {
            room.left(user_id);
        }
        self.touched();
    }

    /// A room, made if it is not there: public, with the admin account as its creator and only member.
    pub fn room(&mut self, room_id: &str) -> &mut Room {
        let admin = self.admin();
        self.rooms.entry(room_id.to_owned()).or_insert_with(|| Room::of(&admin))
    }

    /// A room of a user who left it so many days ago.
    pub fn emptied_room(&mut self, room_id: &str, user_id: &str, days: i64) -> &mut Room {
        let left_ms = (self.now() - TimeDelta::days(days)).timestamp_millis();
        let room = self.rooms.entry(room_id.to_owned()).or_insert_with(|| Room::of(user_id));
        room.left(user_id);
        room.timeline = vec![
            room_event("m.room.member", user_id, user_id, left_ms, &json!({"membership": "leave"})),
            room_event(
                "m.room.member",
                user_id,
                user_id,
                LONG_AGO_MS,
                &json!({"membership": "join"}),
            ),
            room_event("m.room.create", "", user_id, LONG_AGO_MS, &json!({})),
        ];
        room
    }

    /// Starts a task of Synapse about a room.
    pub fn task(&mut self, action: &str, status: &str, room_id: &str, purge: bool) -> String {
        let id = format!("task{}", self.tasks.len());
        self.tasks.push(Task {
            id: id.clone(),
            action: action.to_owned(),
            status: status.to_owned(),
            at_ms: self.now().timestamp_millis(),
            room_id: room_id.to_owned(),
            purge,
            first_kept: None,
            polls: self.polls_per_deletion,
            error: None,
        });
        id
    }

    /// A local file with no flags.
    pub fn media(
        &mut self,
        owner: &str,
        id: &str,
        bytes: u64,
        created_ms: i64,
        last_access_ms: Option<i64>,
    ) -> &mut Media {
        self.files_by_owner.entry(owner.to_owned()).or_default().insert(id.to_owned());
        self.files.entry(id.to_owned()).or_insert_with(|| Media {
            owner: owner.to_owned(),
            bytes: Some(bytes),
            created_ms,
            last_access_ms,
            avatar: false,
            quarantined: false,
            protected: false,
            stuck: false,
            media_type: "image/png",
        })
    }

    /// Puts this many files of other homeservers into the cache.
    pub fn remote_media(&mut self, count: usize, last_access_ms: i64) {
        let next = self.remote.keys().next_back().map_or(0, |last| last + 1);
        self.remote.extend(
            (next..).take(count).map(|key| (key, Remote { last_access_ms, quarantined: false })),
        );
    }

    /// The local files by id.
    pub fn files(&self) -> &BTreeMap<String, Media> {
        &self.files
    }

    pub fn file_mut(&mut self, id: &str) -> Option<&mut Media> {
        self.files.get_mut(id)
    }

    /// Deletes a file as somebody else would.
    pub fn remove_file(&mut self, id: &str) {
        self.delete(&Doomed::Local(id.to_owned()));
    }

    /// Who would be logged in by that external id, as Synapse's cache has it.
    pub fn login_by(&mut self, provider: &str, external_id: &str) -> Option<String> {
        let key = (provider.to_owned(), external_id.to_owned());
        if let Some(cached) = self.lookups.get(&key) {
            return cached.clone();
        }
        let owner = self
            .users
            .iter()
            .find(|(_, user)| user.external_ids.contains(&key))
            .map(|(user_id, _)| user_id.clone());
        self.lookups.insert(key, owner.clone());
        owner
    }

    /// The homeserver's idea of the time.
    #[expect(
        clippy::disallowed_methods,
        reason = "the client compares its own clock with this one"
    )]
    pub fn now(&self) -> DateTime<Utc> {
        Utc::now() + TimeDelta::seconds(self.clock_offset_seconds)
    }

    pub(super) fn http_date(&self) -> String {
        self.now().format("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    pub(super) fn at_least(&self, (major, minor): (u32, u32)) -> bool {
        let mut numbers =
            self.version.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }

    pub(super) fn is_local(&self, id: &str) -> bool {
        id.split_once(':').is_some_and(|(_, domain)| domain == self.server_name)
    }

    pub(super) fn files_of(&self, owner: &str) -> impl Iterator<Item = (&String, &Media)> {
        self.files_by_owner
            .get(owner)
            .into_iter()
            .flatten()
            .filter_map(|id| self.files.get_key_value(id))
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = &String> {
        self.files_by_owner.keys()
    }

    pub(super) fn delete(&mut self, doomed: &Doomed) {
        self.touched();
        match doomed {
            Doomed::Remote(key) => {
                self.remote.remove(key);
            }
            Doomed::Local(id) => {
                let Some(media) = self.files.remove(id) else { return };
                if let Some(owned) = self.files_by_owner.get_mut(&media.owner) {
                    owned.remove(id);
                    if owned.is_empty() {
                        self.files_by_owner.remove(&media.owner);
                    }
                }
            }
        }
    }

    pub(super) fn forget_lookup(&mut self, external_id: &(String, String)) {
        self.lookups.remove(external_id);
    }

    /// A list in its order, made once for all its pages.
    pub(super) fn listing(
        &mut self,
        key: String,
        make: impl FnOnce(&Self) -> Vec<ListedJob>,
    ) -> Arc<Vec<ListedJob>> {
        if let Some(listing) = self.listings.get(&key) {
            return Arc::clone(listing);
        }
        if self.listings.len() >= 64 {
            self.listings.clear();
        }
        let listing = Arc::new(make(self));
        self.listings.insert(key, Arc::clone(&listing));
        listing
    }

    /// Invalidates the lists made so far.
    pub(super) fn touched(&mut self) {
        self.listings.clear();
    }

    pub(super) fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    pub(super) fn take_complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }
}

/// An access token; remove it from `World::tokens` to revoke it.
#[derive(Clone)]
pub struct Token {
    pub user_id: String,
    pub device_id: Option<String>,
    /// Counts under MAS only.
    pub admin_scope: bool,
    pub expired: bool,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "as in Synapse's own table"
)]
pub struct User {
    pub displayname: Option<String>,
    /// The id of a file.
    pub avatar: Option<String>,
    pub created_ms: i64,
    /// Of its requests.
    pub last_seen_ms: Option<i64>,
    pub devices: Vec<Device>,
    /// Whether the key of a key backup is in its account data.
    pub has_key_backup: bool,
    pub admin: bool,
    pub deactivated: bool,
    pub erased: bool,
    pub locked: bool,
    pub suspended: bool,
    pub guest: bool,
    pub user_type: Option<String>,
    pub appservice_id: Option<String>,
    /// Provider and id.
    pub external_ids: Vec<(String, String)>,
    /// By type, of no room.
    pub account_data: BTreeMap<String, Value>,
}

impl Default for User {
    fn default() -> Self {
        Self {
            displayname: None,
            avatar: None,
            created_ms: LONG_AGO_MS,
            last_seen_ms: None,
            devices: Vec::new(),
            has_key_backup: false,
            admin: false,
            deactivated: false,
            erased: false,
            locked: false,
            suspended: false,
            guest: false,
            user_type: None,
            appservice_id: None,
            external_ids: Vec::new(),
            account_data: BTreeMap::new(),
        }
    }
}

impl User {
    /// What the list shows: one old device hides newer requests without a device.
    pub fn listed_last_seen_ms(&self) -> Option<i64> {
        let devices = self.devices.iter().filter_map(|device| device.last_seen_ms);
        devices.max().or(self.last_seen_ms)
    }

    pub fn external(mut self, provider: &str, external_id: &str) -> Self {
        self.external_ids.push((provider.to_owned(), external_id.to_owned()));
        self
    }
}

#[derive(Clone, Debug, Default)]
pub struct Device {
    pub id: String,
    pub name: Option<String>,
    pub last_seen_ms: Option<i64>,
    pub dehydrated: bool,
}

/// Once no local member is joined, Synapse knows no state of a room any more.
#[derive(Clone, Debug)]
pub struct Room {
    pub name: Option<String>,
    pub aliases: Vec<String>,
    pub version: String,
    pub creator: String,
    /// Equal to the creator from room version 12 on.
    pub additional_creators: Vec<String>,
    /// `None`: the event lacks its key.
    pub join_rule: Option<String>,
    /// By user; who is not in here has 0.
    pub power: BTreeMap<String, i64>,
    pub power_to_invite: i64,
    pub members: BTreeMap<String, Member>,
    pub predecessor: Option<String>,
    /// The room that replaces this one.
    pub tombstone: Option<String>,
    /// By whom.
    pub blocked: Option<String>,
    /// What is left of an emptied room, newest first.
    pub timeline: Vec<Value>,
    /// Whether its state, also where that is not in the timeline, says so.
    pub encrypted: bool,
    /// More of its state: `type`, `state_key` (default: empty) and `content`.
    pub extra_state: Vec<Value>,
}

impl Room {
    fn of(creator: &str) -> Self {
        let mut room = Self {
            name: None,
            aliases: Vec::new(),
            version: "10".to_owned(),
            creator: creator.to_owned(),
            additional_creators: Vec::new(),
            join_rule: Some("public".to_owned()),
            power: BTreeMap::from([(creator.to_owned(), 100)]),
            power_to_invite: 0,
            members: BTreeMap::new(),
            predecessor: None,
            tombstone: None,
            blocked: None,
            timeline: Vec::new(),
            encrypted: false,
            extra_state: Vec::new(),
        };
        room.joined(creator);
        room
    }

    pub fn alias(&mut self, alias: &str) -> &mut Self {
        self.aliases.push(alias.to_owned());
        self
    }

    pub fn joined(&mut self, user_id: &str) -> &mut Self {
        self.member(user_id, "join", user_id)
    }

    pub fn left(&mut self, user_id: &str) -> &mut Self {
        self.member(user_id, "leave", user_id)
    }

    pub fn kicked(&mut self, user_id: &str, by: &str) -> &mut Self {
        self.member(user_id, "leave", by)
    }

    pub fn banned(&mut self, user_id: &str, by: &str) -> &mut Self {
        self.member(user_id, "ban", by)
    }

    pub fn invited(&mut self, user_id: &str, by: &str) -> &mut Self {
        self.member(user_id, "invite", by)
    }

    pub fn member(&mut self, user_id: &str, membership: &str, sender: &str) -> &mut Self {
        let member = Member {
            membership: membership.to_owned(),
            sender: sender.to_owned(),
            displayname: None,
        };
        self.members.insert(user_id.to_owned(), member);
        self
    }

    /// Sends a state event, which replaces the one of the same type and key.
    pub fn set_state(&mut self, kind: &str, state_key: &str, content: &Value) -> &mut Self {
        let is_same = |event: &Value| event["type"] == kind && event["state_key"] == state_key;
        self.extra_state.retain(|event| !is_same(event));
        self.extra_state.push(json!({"type": kind, "state_key": state_key, "content": content}));
        self
    }

    /// What Synapse counts: what was replaced counts once.
    pub(super) fn state_events(&self) -> usize {
        let single = [!self.aliases.is_empty(), self.name.is_some(), self.tombstone.is_some()];
        let single = single.into_iter().filter(|is_there| *is_there).count();
        3 + single + self.extra_state.len() + self.members.len()
    }

    pub fn membership(&self, user_id: &str) -> Option<&str> {
        self.members.get(user_id).map(|member| member.membership.as_str())
    }

    pub(super) fn power_of(&self, user_id: &str) -> i64 {
        let creators_rule = self.version.parse::<u32>().is_ok_and(|version| version >= 12);
        let created = self.creator == user_id
            || self.additional_creators.iter().any(|creator| creator == user_id);
        if creators_rule && created {
            i64::MAX
        } else {
            self.power.get(user_id).copied().unwrap_or(0)
        }
    }
}

/// An event of a timeline.
pub fn room_event(
    kind: &str,
    state_key: &str,
    sender: &str,
    sent_ms: i64,
    content: &Value,
) -> Value {
    json!({
        "type": kind, "state_key": state_key, "sender": sender, "origin_server_ts": sent_ms,
        "event_id": format!("${kind}-{state_key}-{sent_ms}"), "content": content, "unsigned": {"age": 1000},
    })
}

/// A task of Synapse that deletes a room.
#[derive(Clone, Debug)]
pub struct Task {
    pub id: String,
    pub action: String,
    pub status: String,
    pub at_ms: i64,
    pub room_id: String,
    pub purge: bool,
    /// Of a purge of history: the first event that stays.
    pub first_kept: Option<String>,
    /// How often it is asked for before it ends.
    pub polls: u32,
    pub error: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Member {
    pub membership: String,
    pub sender: String,
    /// The name in this room.
    pub displayname: Option<String>,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "as in Synapse's own table"
)]
pub struct Media {
    pub owner: String,
    /// `None`: the upload is pending.
    pub bytes: Option<u64>,
    pub created_ms: i64,
    pub last_access_ms: Option<i64>,
    pub avatar: bool,
    pub quarantined: bool,
    pub protected: bool,
    /// Cannot be unlinked: Synapse skips it and does not say so.
    pub stuck: bool,
    pub media_type: &'static str,
}

#[derive(Clone, Debug)]
pub struct Remote {
    pub last_access_ms: i64,
    pub quarantined: bool,
}

/// A file that a call has selected.
#[derive(Debug)]
pub enum Doomed {
    Local(String),
    Remote(u64),
}

/// A row of a list: an account or a file, with sums where the list has them.
pub(super) struct ListedJob {
    pub name: String,
    pub count: u64,
    pub bytes: u64,
}

impl ListedJob {
    pub fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), count: 0, bytes: 0 }
    }
}
