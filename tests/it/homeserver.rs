//! A real Synapse for tests: installed once, started per test, stopped when the test ends.

#[path = "homeserver/deployment.rs"]
pub mod deployment;
#[path = "homeserver/process.rs"]
mod process;

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, Url};
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Row, TypeInfo, ValueRef,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use tempfile::TempDir;
use tokio::{
    sync::{OnceCell, Semaphore, SemaphorePermit},
    task::spawn_blocking,
};

use self::process::Process;
use crate::{postgres, venv};

const SERVER_NAME: &str = "hs.test";
const PASSWORD: &str = "wordpass";
const APPSERVICE_TOKEN: &str = "appservice-token-of-the-test-bridge";
/// The file that `synapse.py` reads.
const DAYS_AGO: &str = "days-ago";
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

const BACKGROUND_UPDATES_TIMEOUT: Duration = Duration::from_mins(2);

/// A test that starts more than these at once waits for itself.
static RUNNING: Semaphore = Semaphore::const_new(3);

/// A running Synapse with an own database, port and directory.
pub struct Synapse {
    pub url: String,
    pub admin: Account,
    pub dir: PathBuf,
    process: Option<Process>,
    /// The name of its database in PostgreSQL, if it is not in SQLite.
    database: Option<String>,
    client: Client,
    directory: TempDir,
    _permit: SemaphorePermit<'static>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub user_id: String,
    pub token: String,
}

/// What becomes of the messages of a deactivated user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Messages {
    Keep,
    Erase,
}

/// A user's member event in a room.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub membership: String,
    pub displayname: Option<String>,
}

/// Starting, stopping, and talking to it.
impl Synapse {
    pub async fn start() -> Self {
        Self::with_config("").await
    }

    /// Top-level keys of `extra_yaml` replace those of the usual configuration.
    pub async fn with_config(extra_yaml: &str) -> Self {
        let prepared = prepared().await;
        let directory = prepared.instance();
        let token = directory.path().join("admin-token");
        let token = fs::read_to_string(token).expect("read the admin token");
        Self::launch(&prepared.python, directory, extra_yaml, token).await
    }

    /// Starts a Synapse whose clock is so many days behind, until [`Self::return_to_now`].
    pub async fn days_ago(days: u32, extra_yaml: &str) -> Self {
        let prepared = prepared().await;
        let directory = prepared.instance();
        fs::write(directory.path().join(DAYS_AGO), days.to_string()).expect("write the days");
        let token = directory.path().join("admin-token");
        let token = fs::read_to_string(token).expect("read the admin token");
        Self::launch(&prepared.python, directory, extra_yaml, token).await
    }

    /// Starts Synapse again, at another URL and with the right clock.
    pub async fn return_to_now(&mut self) {
        self.stop().await;
        fs::remove_file(self.dir.join(DAYS_AGO)).expect("remove the days");
        self.run(&prepared().await.python).await;
    }

    /// Waits for Synapse to end in good order, as `systemctl stop` does.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop().await;
        }
    }

    /// Sends a request as the server admin; a null `body` is no body.
    pub async fn admin(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.client(&self.admin, method, path, body).await
    }

    /// Sends a request as `account`; the segments of `path` are encoded already, see [`encoded`].
    pub async fn client(
        &self,
        account: &Account,
        method: Method,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let request = self.request(method, path).bearer_auth(&account.token);
        send(if body.is_null() { request } else { request.json(&body) }).await
    }

    /// Sends a request without a token, as who registers does.
    pub async fn anonymous(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        send(self.request(method, path).json(&body)).await
    }

    /// Gets what the server admin sees at `path`, which must be there.
    pub async fn get(&self, path: &str) -> Value {
        self.expect(&self.admin, Method::GET, path, Value::Null).await
    }

    /// Returns the rows of a statement run on Synapse's database.
    ///
    /// Synapse keeps some rows in memory, so it may not see a change before a restart. Users
    /// and media that were not requested yet are safe to insert and to change.
    pub async fn sql(&self, statement: &str) -> Vec<Vec<Value>> {
        if let Some(database) = &self.database {
            let (succeeded, rows) = postgres::server().psql(database, statement);
            assert!(succeeded, "{rows} in: {statement}");
            return rows.lines().map(|row| row.split('|').map(number_or_text).collect()).collect();
        }
        let mut connection = SqliteConnectOptions::new()
            .filename(self.dir.join("homeserver.db"))
            .busy_timeout(Duration::from_secs(30))
            .connect()
            .await
            .expect("open Synapse's database");
        let rows = sqlx::raw_sql(AssertSqlSafe(statement))
            .fetch_all(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{error} in: {statement}"));
        connection.close().await.expect("close Synapse's database");
        rows.iter().map(row_values).collect()
    }

    /// Returns the requests that Synapse received, each as "METHOD path?query".
    ///
    /// Those that this fixture sent are among them, see [`Self::forget_requests`]; those that ask what Synapse does on its own
    /// account are not.
    pub fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("requests.log")).expect("read requests.log");
        let received = |line: &str| Some(line.split_once(" - Received request: ")?.1.to_owned());
        let is_look = |request: &String| {
            request.contains("/background_updates/status") || request.contains("status=active")
        };
        log.lines().filter_map(received).filter(|request| !is_look(request)).collect()
    }

    pub fn forget_requests(&self) {
        fs::write(self.dir.join("requests.log"), "").expect("empty requests.log");
    }

    async fn launch(python: &Path, directory: TempDir, extra_yaml: &str, token: String) -> Self {
        let mut synapse = Self::in_directory(directory, token).await;
        fs::write(synapse.dir.join("extra.yaml"), extra_yaml).expect("write extra.yaml");
        synapse.run(python).await;
        synapse
    }

    async fn run(&mut self, python: &Path) {
        let configs = ["homeserver.yaml", "extra.yaml"];
        let (process, port) = Process::start(python, &self.dir, "homeserver", &configs).await;
        self.process = Some(process);
        self.url = format!("http://127.0.0.1:{port}");
    }

    /// Writes the configuration, and starts nothing yet.
    async fn in_directory(directory: TempDir, token: String) -> Self {
        let permit = RUNNING.acquire().await.expect("nobody closes the semaphore");
        let dir = directory.path().to_owned();
        write_config(&dir);
        Self {
            url: String::new(),
            admin: Account { user_id: user_id("admin"), token },
            dir,
            process: None,
            database: None,
            client: http_client(),
            directory,
            _permit: permit,
        }
    }

    /// Makes the first account, an admin, where registration is open, and waits for the background updates.
    async fn register_first(&mut self) {
        let body = json!({
            "username": "admin",
            "password": PASSWORD,
            "auth": { "type": "m.login.dummy" },
        });
        let request = self.request(Method::POST, "/_matrix/client/v3/register").json(&body);
        self.admin = account("the admin's registration", send(request).await);
        self.sql("UPDATE users SET admin = 1").await;
        let registered = Instant::now();
        while self.count("background_updates").await > 0 {
            assert!(
                registered.elapsed() < BACKGROUND_UPDATES_TIMEOUT,
                "Synapse does not finish its first background updates; its log ends:\n{}",
                last_lines(&self.dir.join("homeserver.log"))
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = Url::parse(&format!("{}{path}", self.url)).expect("the path makes a URL");
        self.client.request(method, url)
    }

    async fn expect(&self, account: &Account, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.client(account, method.clone(), path, body).await;
        let user_id = &account.user_id;
        assert!(matches!(status, 200 | 201), "{method} {path} as {user_id}: {status} {answer}");
        answer
    }
}

/// Accounts.
impl Synapse {
    /// Registers a user with a profile, a password and a device.
    pub async fn register(&self, localpart: &str) -> Account {
        self.register_with(localpart, json!({})).await
    }

    pub async fn register_admin(&self, localpart: &str) -> Account {
        self.register_with(localpart, json!({ "admin": true })).await
    }

    /// Writes a user into the database that Synapse would not register today.
    ///
    /// Old homeservers have ids with capitals and with any other character.
    pub async fn insert_user(&self, localpart: &str) -> Account {
        self.insert_users(&[localpart.to_owned()]).await;
        self.login(&Account { user_id: user_id(localpart), token: String::new() }).await
    }

    /// Writes `count` users, `prefix00000` and so on, into the database and returns their ids.
    pub async fn register_many(&self, prefix: &str, count: usize) -> Vec<String> {
        let localparts: Vec<String> = (0..count).map(|n| format!("{prefix}{n:05}")).collect();
        if count > 0 {
            self.insert_users(&localparts).await;
        }
        localparts.iter().map(|localpart| user_id(localpart)).collect()
    }

    /// Registers a bridge's ghost; the localpart begins with `ghost_`.
    pub async fn ghost(&self, localpart: &str) -> Account {
        let body = json!({ "type": "m.login.application_service", "username": localpart });
        let path = "/_matrix/client/v3/register";
        let request = self.request(Method::POST, path).bearer_auth(APPSERVICE_TOKEN).json(&body);
        account("the ghost's registration", send(request).await)
    }

    pub async fn guest(&self) -> Account {
        let path = "/_matrix/client/v3/register?kind=guest";
        let request = self.request(Method::POST, path).json(&json!({}));
        account("the guest's registration", send(request).await)
    }

    /// Returns the account with the token of a new device.
    pub async fn login(&self, Account { user_id, .. }: &Account) -> Account {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": user_id },
            "password": PASSWORD,
        });
        let request = self.request(Method::POST, "/_matrix/client/v3/login").json(&body);
        account(&format!("the login of {user_id}"), send(request).await)
    }

    /// Changes a user, or makes one, by `PUT /_synapse/admin/v2/users/<id>`.
    pub async fn set_user(&self, user_id: &str, change: Value) -> Value {
        self.expect(&self.admin, Method::PUT, &user_path(user_id), change).await
    }

    /// Replaces the user's external ids by these pairs of provider and id.
    pub async fn external_ids(&self, user_id: &str, ids: &[(&str, &str)]) {
        let entry =
            |(provider, id): &(&str, &str)| json!({ "auth_provider": provider, "external_id": id });
        let entries: Vec<Value> = ids.iter().map(entry).collect();
        self.set_user(user_id, json!({ "external_ids": entries })).await;
    }

    /// Returns the user's external ids, sorted pairs of provider and id.
    pub async fn external_ids_of(&self, user_id: &str) -> Vec<(String, String)> {
        let user = self.get(&user_path(user_id)).await;
        let entries = user["external_ids"].as_array().expect("a user has external ids");
        let pair = |entry| (text(entry, "auth_provider"), text(entry, "external_id"));
        let mut ids: Vec<(String, String)> = entries.iter().map(pair).collect();
        ids.sort();
        ids
    }

    pub async fn deactivate(&self, user_id: &str, messages: Messages) {
        let path = format!("/_synapse/admin/v1/deactivate/{}", encoded(user_id));
        let body = json!({ "erase": messages == Messages::Erase });
        self.expect(&self.admin, Method::POST, &path, body).await;
    }

    pub async fn lock(&self, user_id: &str) {
        self.set_user(user_id, json!({ "locked": true })).await;
    }

    pub async fn suspend(&self, user_id: &str) {
        let path = format!("/_synapse/admin/v1/suspend/{}", encoded(user_id));
        self.expect(&self.admin, Method::PUT, &path, json!({ "suspend": true })).await;
    }

    async fn register_with(&self, localpart: &str, mut user: Value) -> Account {
        let user_id = user_id(localpart);
        user["password"] = json!(PASSWORD);
        let (status, answer) = self.admin(Method::PUT, &user_path(&user_id), user).await;
        assert_eq!(status, 201, "{user_id} is not a new user: {answer}");
        self.login(&Account { user_id, token: String::new() }).await
    }

    /// Takes the admin's password hash, so that the users can log in.
    async fn insert_users(&self, localparts: &[String]) {
        let row = |localpart: &String| {
            format!("({}, {})", quoted(localpart), quoted(&user_id(localpart)))
        };
        let rows: Vec<String> = localparts.iter().map(row).collect();
        let new = format!("WITH new (localpart, id) AS (VALUES {})", rows.join(", "));
        let admin = quoted(&self.admin.user_id);
        self.sql(&format!(
            "BEGIN;
            {new} INSERT INTO users (name, password_hash, creation_ts, admin, approved, shadow_banned)
            SELECT id, (SELECT password_hash FROM users WHERE name = {admin}), unixepoch(), 0, true, false
            FROM new;
            {new} INSERT INTO profiles (user_id, full_user_id, displayname)
            SELECT localpart, id, localpart FROM new;
            COMMIT"
        ))
        .await;
    }
}

/// Rooms.
impl Synapse {
    pub async fn create_room(&self, account: &Account, room: Value) -> String {
        let path = "/_matrix/client/v3/createRoom";
        text(&self.expect(account, Method::POST, path, room).await, "room_id")
    }

    /// Returns the id of the room that takes over.
    pub async fn upgrade_room(&self, account: &Account, room_id: &str, version: &str) -> String {
        let body = json!({ "new_version": version });
        text(&self.room_action(account, room_id, "upgrade", body).await, "replacement_room")
    }

    pub async fn join(&self, account: &Account, room_id: &str) {
        self.room_action(account, room_id, "join", json!({})).await;
    }

    pub async fn leave(&self, account: &Account, room_id: &str) {
        self.room_action(account, room_id, "leave", json!({})).await;
    }

    pub async fn invite(&self, account: &Account, room_id: &str, user_id: &str) {
        self.room_action(account, room_id, "invite", json!({ "user_id": user_id })).await;
    }

    pub async fn kick(&self, account: &Account, room_id: &str, user_id: &str) {
        self.room_action(account, room_id, "kick", json!({ "user_id": user_id })).await;
    }

    pub async fn ban(&self, account: &Account, room_id: &str, user_id: &str) {
        self.room_action(account, room_id, "ban", json!({ "user_id": user_id })).await;
    }

    pub async fn unban(&self, account: &Account, room_id: &str, user_id: &str) {
        self.room_action(account, room_id, "unban", json!({ "user_id": user_id })).await;
    }

    /// Gives the member another name in this room than in the profile.
    pub async fn set_nick(&self, account: &Account, room_id: &str, name: &str) {
        let member = json!({ "membership": "join", "displayname": name });
        self.set_state(account, room_id, ("m.room.member", &account.user_id), member).await;
    }

    /// Creates a space with an alias of the same name.
    pub async fn create_space(&self, account: &Account, name: &str) -> String {
        let content = json!({ "type": "m.space" });
        let room = json!({ "preset": "public_chat", "room_alias_name": name, "creation_content": content });
        self.create_room(account, room).await
    }

    pub async fn add_to_space(&self, account: &Account, space: &str, room_id: &str) {
        let via = json!({ "via": ["hs.test"] });
        self.set_state(account, space, ("m.space.child", room_id), via).await;
    }

    /// Sends a state event, by its type and state key.
    pub async fn set_state(
        &self,
        account: &Account,
        room_id: &str,
        (event_type, state_key): (&str, &str),
        content: Value,
    ) {
        let action = format!("state/{event_type}/{}", encoded(state_key));
        self.expect(account, Method::PUT, &room_path(room_id, &action), content).await;
    }

    /// Returns none for a user whom the room never saw.
    pub async fn membership(&self, room_id: &str, user_id: &str) -> Option<Member> {
        let room_id = encoded(room_id);
        let path = format!("/_synapse/admin/v1/rooms/{room_id}/state?type=m.room.member");
        let state = self.get(&path).await;
        let events = state["state"].as_array().expect("a room has state");
        let content = &events.iter().find(|event| event["state_key"] == user_id)?["content"];
        let displayname = content["displayname"].as_str().map(str::to_owned);
        Some(Member { membership: text(content, "membership"), displayname })
    }

    /// Counts the user's joins and, as they are joins too, changes of name and avatar.
    pub async fn join_event_count(&self, room_id: &str, user_id: &str) -> i64 {
        let (room_id, user_id) = (quoted(room_id), quoted(user_id));
        self.count(&format!(
            "room_memberships WHERE membership = 'join' AND room_id = {room_id} AND user_id = {user_id}"
        ))
        .await
    }

    async fn room_action(
        &self,
        account: &Account,
        room_id: &str,
        action: &str,
        body: Value,
    ) -> Value {
        self.expect(account, Method::POST, &room_path(room_id, action), body).await
    }

    async fn count(&self, rows: &str) -> i64 {
        let counted = self.sql(&format!("SELECT count(*) FROM {rows}")).await;
        counted[0][0].as_i64().expect("a count is a number")
    }
}

/// Media.
impl Synapse {
    /// Returns the media id.
    pub async fn upload(&self, account: &Account, bytes: &[u8]) -> String {
        let request = self
            .request(Method::POST, "/_matrix/media/v3/upload")
            .bearer_auth(&account.token)
            .header("content-type", "application/octet-stream")
            .body(bytes.to_owned());
        let (status, answer) = send(request).await;
        assert_eq!(status, 200, "the upload by {}: {answer}", account.user_id);
        let uri = text(&answer, "content_uri");
        let media_id = uri.strip_prefix(&format!("mxc://{SERVER_NAME}/"));
        media_id.expect("an upload is on this server").to_owned()
    }

    pub async fn set_avatar(&self, account: &Account, media_id: &str) {
        let user_id = encoded(&account.user_id);
        let path = format!("/_matrix/client/v3/profile/{user_id}/avatar_url");
        let body = json!({ "avatar_url": format!("mxc://{SERVER_NAME}/{media_id}") });
        self.expect(account, Method::PUT, &path, body).await;
    }

    pub async fn quarantine(&self, media_id: &str) {
        let path = format!("/_synapse/admin/v1/media/quarantine/{SERVER_NAME}/{media_id}");
        self.expect(&self.admin, Method::POST, &path, json!({})).await;
    }

    /// Protects the file from quarantine, by which Synapse's media deletion spares it too.
    pub async fn protect(&self, media_id: &str) {
        let path = format!("/_synapse/admin/v1/media/protect/{media_id}");
        self.expect(&self.admin, Method::POST, &path, json!({})).await;
    }

    pub async fn age_media(
        &self,
        media_id: &str,
        created_days_ago: i64,
        last_access_days_ago: Option<i64>,
    ) {
        let created = days_ago(created_days_ago);
        let accessed = last_access_days_ago.map_or_else(|| "NULL".to_owned(), days_ago);
        let media_id = quoted(media_id);
        self.sql(&format!(
            "UPDATE local_media_repository SET created_ts = {created}, last_access_ts = {accessed}
            WHERE media_id = {media_id}"
        ))
        .await;
    }

    pub async fn media_exists(&self, media_id: &str) -> bool {
        self.media_of_origin_exists(SERVER_NAME, media_id).await
    }

    /// Puts a file of another homeserver into the cache.
    pub async fn insert_remote_media(
        &self,
        origin: &str,
        media_id: &str,
        last_access_days_ago: i64,
    ) {
        let folder = self.dir.join("media_store/remote_content").join(origin).join("aa/bb");
        fs::create_dir_all(&folder).expect("create the folder of the cached file");
        fs::write(folder.join(media_id), "cached").expect("write the cached file");
        let accessed = days_ago(last_access_days_ago);
        let filesystem_id = quoted(&format!("aabb{media_id}"));
        let (origin, media_id) = (quoted(origin), quoted(media_id));
        self.sql(&format!(
            "INSERT INTO remote_media_cache (media_origin, media_id, media_type, created_ts,
            upload_name, media_length, filesystem_id, last_access_ts, authenticated)
            VALUES ({origin}, {media_id}, 'text/plain', {accessed}, 'cached.txt', 6,
            {filesystem_id}, {accessed}, 0)"
        ))
        .await;
    }

    pub async fn remote_media_exists(&self, origin: &str, media_id: &str) -> bool {
        self.media_of_origin_exists(origin, media_id).await
    }

    async fn media_of_origin_exists(&self, origin: &str, media_id: &str) -> bool {
        let path = format!("/_synapse/admin/v1/media/{}/{}", encoded(origin), encoded(media_id));
        match self.admin(Method::GET, &path, Value::Null).await {
            (200, _) => true,
            (404, answer) if answer["errcode"] == "M_NOT_FOUND" => false,
            (status, answer) => panic!("GET {path}: {status} {answer}"),
        }
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        // Before the directory is deleted, so that Synapse does not write into it again.
        self.process = None;
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            #[expect(clippy::print_stdout, reason = "the test harness shows it with the failure")]
            {
                println!("the homeserver's files and log are left in {}", self.dir.display());
            }
        }
    }
}

/// Percent-encodes a segment of a path, such as a user id, or a value of a query.
pub fn encoded(segment: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(byte).collect()
}

/// What is made once per target directory.
struct Prepared {
    python: PathBuf,
    /// The directory of a homeserver that has run already and knows its admin.
    template: PathBuf,
}

impl Prepared {
    /// Returns the directory of a new homeserver.
    fn instance(&self) -> TempDir {
        let directory = tempfile::Builder::new()
            .prefix("synapse-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("create the homeserver's directory");
        copy_files(&self.template, directory.path());
        directory
    }
}

async fn prepared() -> &'static Prepared {
    static PREPARED: OnceCell<Prepared> = OnceCell::const_new();
    PREPARED.get_or_init(prepare).await
}

/// Other test processes wait in the meantime; an interrupted installation is repeated.
async fn prepare() -> Prepared {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it has a parent");
    let home = venv::home(target);
    fs::create_dir_all(&home).expect("create the directory for Synapse");
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).expect("create the directory for instances");
    let lock = File::create(home.join("lock")).expect("create the lock file");
    let environment = home.clone();
    let installation = spawn_blocking(move || {
        let python = venv::install(&environment, &lock);
        (lock, python)
    });
    let (lock, python) = match installation.await {
        Ok(installed) => installed,
        Err(error) => resume_unwind(error.into_panic()),
    };
    let template = make_template(&home, &python).await;
    drop(lock);
    Prepared { python, template }
}

/// Runs Synapse once, so that no test waits for its first start, and returns its directory.
async fn make_template(home: &Path, python: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (include_str!("homeserver.rs"), include_str!("synapse.py")).hash(&mut hasher);
    let template = home.join(format!("template-{:016x}", hasher.finish()));
    if template.exists() {
        return template;
    }
    for entry in fs::read_dir(home).expect("list the directory of Synapse") {
        let path = entry.expect("list the directory of Synapse").path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("template-")) {
            fs::remove_dir_all(&path).expect("remove an old template");
        }
    }
    let new = tempfile::Builder::new().prefix("template-new-").tempdir_in(home);
    let new = new.expect("create the template's directory");
    let key = new.path().join("hs.signing.key");
    venv::run(
        Command::new(python)
            .args(["-I", "-m", "synapse._scripts.generate_signing_key", "-o"])
            .arg(key),
    );

    let open = "enable_registration: true\nenable_registration_without_verification: true\n";
    let mut synapse = Synapse::launch(python, new, open, String::new()).await;
    synapse.register_first().await;
    synapse.stop().await;
    synapse.sql("PRAGMA wal_checkpoint(TRUNCATE)").await;
    for log in ["homeserver.log", "requests.log"] {
        fs::remove_file(synapse.dir.join(log)).expect("remove the template's log");
    }
    fs::write(synapse.dir.join("admin-token"), &synapse.admin.token)
        .expect("write the admin's token");
    fs::rename(&synapse.dir, &template).expect("put the template in place");
    template
}

/// Everything is relative to the instance's directory; JSON is YAML.
fn write_config(dir: &Path) {
    let files = [
        ("homeserver.yaml", homeserver_config()),
        ("log.yaml", log_config()),
        ("appservice.yaml", appservice_config()),
    ];
    for (name, content) in files {
        fs::write(dir.join(name), content.to_string()).expect("write the configuration");
    }
}

fn homeserver_config() -> Value {
    let rate = json!({ "per_second": 100_000, "burst_count": 100_000 });
    json!({
        "server_name": SERVER_NAME,
        "report_stats": false,
        "pid_file": "homeserver.pid",
        "log_config": "log.yaml",
        "signing_key_path": "hs.signing.key",
        "media_store_path": "media_store",
        "database": { "name": "sqlite3", "args": { "database": "homeserver.db" } },
        "background_updates": { "sleep_enabled": false },
        "listeners": [{
            "port": 0,
            "type": "http",
            "tls": false,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{ "names": ["client"] }],
        }],
        "macaroon_secret_key": "macaroons of the tests",
        "form_secret": "forms of the tests",
        "registration_shared_secret": "registrations of the tests",
        "bcrypt_rounds": 4,
        "allow_guest_access": true,
        "app_service_config_files": ["appservice.yaml"],
        "url_preview_enabled": false,
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "rc_message": rate,
        "rc_registration": rate,
        "rc_registration_token_validity": rate,
        "rc_login": { "address": rate, "account": rate, "failed_attempts": rate },
        "rc_admin_redaction": rate,
        "rc_joins": { "local": rate, "remote": rate },
        "rc_joins_per_room": rate,
        "rc_key_requests": rate,
        "rc_3pid_validation": rate,
        "rc_invites": { "per_room": rate, "per_user": rate, "per_issuer": rate },
        "rc_third_party_invite": rate,
        "rc_media_create": rate,
        "rc_presence": { "per_user": rate },
        "rc_delayed_event_mgmt": rate,
        "rc_room_creation": rate,
        "rc_reports": rate,
        "rc_user_directory": rate,
        "rc_profile": rate,
    })
}

/// Has in `requests.log` the line that Synapse logs on receipt, and not the one after the answer,
/// so that a request is there before a test can ask for it.
fn log_config() -> Value {
    json!({
        "version": 1,
        "formatters": {
            "long": { "format": "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s" },
        },
        "handlers": {
            "all": {
                "class": "logging.FileHandler",
                "filename": "homeserver.log",
                "formatter": "long",
                "level": "INFO",
            },
            "requests": { "class": "logging.FileHandler", "filename": "requests.log" },
        },
        "loggers": { "synapse.access": { "level": "DEBUG", "handlers": ["requests"] } },
        "root": { "level": "INFO", "handlers": ["all"] },
        "disable_existing_loggers": false,
    })
}

/// Synapse gives `appservice_id` to the users of an exclusive namespace only.
fn appservice_config() -> Value {
    json!({
        "id": "bridge",
        "url": null,
        "as_token": APPSERVICE_TOKEN,
        "hs_token": "homeserver-token-of-the-test-bridge",
        "sender_localpart": "bridge",
        "namespaces": { "users": [{ "exclusive": true, "regex": "@ghost_.*" }] },
    })
}

fn http_client() -> Client {
    // Fails where another test has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().expect("build the HTTP client")
}

#[expect(clippy::disallowed_methods, reason = "the fixture stands beside the program under test")]
async fn send(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("a response from Synapse");
    let status = response.status().as_u16();
    let body = response.text().await.expect("a complete response from Synapse");
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn account(what: &str, (status, answer): (u16, Value)) -> Account {
    assert_eq!(status, 200, "{what}: {answer}");
    Account { user_id: text(&answer, "user_id"), token: text(&answer, "access_token") }
}

fn text(object: &Value, key: &str) -> String {
    let value = object[key].as_str();
    value.unwrap_or_else(|| panic!("no text `{key}` in {object}")).to_owned()
}

fn user_id(localpart: &str) -> String {
    format!("@{localpart}:{SERVER_NAME}")
}

fn user_path(user_id: &str) -> String {
    format!("/_synapse/admin/v2/users/{}", encoded(user_id))
}

fn room_path(room_id: &str, action: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{action}", encoded(room_id))
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// The time as SQL, in milliseconds as Synapse stores it.
fn days_ago(days: i64) -> String {
    format!("(unixepoch() * 1000 - {})", days * DAY_MS)
}

fn row_values(row: &SqliteRow) -> Vec<Value> {
    let value = |index: usize| {
        let raw = row.try_get_raw(index).expect("the column is there");
        match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" => json!(row.get_unchecked::<i64, _>(index)),
            "REAL" => json!(row.get_unchecked::<f64, _>(index)),
            _ => json!(row.get_unchecked::<String, _>(index)),
        }
    };
    row.columns().iter().map(|column| value(column.ordinal())).collect()
}

fn number_or_text(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number))
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("list the template") {
        let entry = entry.expect("list the template");
        let copy = to.join(entry.file_name());
        if entry.file_type().expect("look at the template").is_dir() {
            fs::create_dir(&copy).expect("create a directory of the instance");
            copy_files(&entry.path(), &copy);
        } else {
            fs::copy(entry.path(), &copy).expect("copy a file of the template");
        }
    }
}

fn last_lines(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
