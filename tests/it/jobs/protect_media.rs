//! `protect-media`.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::fake::{Fake, Fault, SERVER_NAME, TOKEN, Trouble, World};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const ROOMS: &str = "/_synapse/admin/v1/rooms/";
const FILES: &str = "/_synapse/admin/v1/media/fake.test/";
const PROTECT: &str = "/_synapse/admin/v1/media/protect/";
const UNPROTECT: &str = "/_synapse/admin/v1/media/unprotect/";
const PACK: &str = "im.ponies.room_emotes";

fn job(keys: &str) -> String {
    format!("[jobs.protect]\nkind = \"protect-media\"\n{keys}\n")
}

async fn undo(program: &Program, run: &Value, options: &[&str]) -> Value {
    let run = run["id"].to_string();
    program.json(&[&["undo", run.as_str(), "--json"], options].concat()).await
}

// What a real Synapse does.

const OTHER_JOBS: &str =
    "[jobs.purge]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\nkeep_avatars = false\n";

/// Uploads a file that nobody has accessed for long.
async fn old(synapse: &Synapse, account: &Account, name: &str) -> String {
    // Quarantine is by content, too.
    let id = synapse.upload(account, name.as_bytes()).await;
    synapse.age_media(&id, 400, None).await;
    id
}

fn uri(id: &str) -> String {
    format!("mxc://hs.test/{id}")
}

fn pack_of(name: &str, images: &[(&str, &str)]) -> Value {
    let images: serde_json::Map<String, Value> =
        images.iter().map(|(code, id)| ((*code).to_owned(), json!({"url": uri(id)}))).collect();
    json!({"images": images, "pack": {"display_name": name}})
}

async fn set_account_data(synapse: &Synapse, account: &Account, path: &str, content: Value) {
    let user = encoded(&account.user_id);
    let path = format!("/_matrix/client/v3/user/{user}/{path}");
    assert_eq!(synapse.client(account, Method::PUT, &path, content).await.0, 200);
}

async fn is_protected(synapse: &Synapse, id: &str) -> bool {
    let path = format!("/_synapse/admin/v1/media/hs.test/{id}");
    synapse.get(&path).await["media_info"]["safe_from_quarantine"] == 1
}

/// The targets of changes, without the ids of rooms and files.
fn targets(report: &Value, names: &[(&str, &str)]) -> Vec<String> {
    let mut lines: Vec<String> = changes(report)
        .into_iter()
        .map(|line| names.iter().fold(line, |line, (name, id)| line.replace(id, name)))
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_purge_of_local_media_keeps_what_rooms_and_users_have_in_use_and_nothing_else() {
    let synapse = Synapse::start().await;
    let (alice, bob) = (synapse.register("alice").await, synapse.register("bob").await);
    let lobby = json!({"preset": "public_chat", "room_alias_name": "lobby"});
    let room = synapse.create_room(&alice, lobby).await;
    let excluded = synapse.create_room(&alice, json!({"name": "No stickers"})).await;
    let left = synapse.create_room(&alice, json!({})).await;
    let mut ids = Vec::new();
    for name in [
        "emote",
        "sticker",
        "face",
        "avatar",
        "thumbnail",
        "userpack",
        "newpack",
        "quarantined",
        "theirs",
        "background",
        "personal",
        "excluded",
        "left",
        "message",
        "unused",
    ] {
        ids.push((name, old(&synapse, &alice, name).await));
    }
    let id = |name: &str| ids.iter().find(|(known, _)| *known == name).unwrap().1.as_str();
    synapse.quarantine(id("quarantined")).await;
    synapse.protect(id("theirs")).await;
    let mut emotes = pack_of(
        "Cats",
        &[
            ("cat", id("emote")),
            ("bad", id("quarantined")),
            ("old", id("theirs")),
            ("gone", "gone"),
        ],
    );
    emotes["pack"]["avatar_url"] = uri(id("face")).into();
    emotes["images"]["far"] = json!({"url": "mxc://far.test/abc"});
    let avatar = json!({"url": uri(id("avatar")), "info": {"thumbnail_url": uri(id("thumbnail"))}});
    let background = json!({"url": uri(id("background"))});
    for (event_type, key, content) in [
        (PACK, "cats", emotes),
        ("m.room.image_pack", "", pack_of("", &[("dog", id("sticker"))])),
        ("m.room.avatar", "", avatar),
        ("org.example.background", "", background.clone()),
    ] {
        synapse.set_state(&alice, &room, (event_type, key), content).await;
    }
    let pack = pack_of("", &[("no", id("excluded"))]);
    synapse.set_state(&alice, &excluded, (PACK, ""), pack).await;
    let pack = pack_of("", &[("no", id("left"))]);
    synapse.set_state(&alice, &left, (PACK, ""), pack).await;
    synapse.leave(&alice, &left).await;
    let user_pack = pack_of("Mine", &[("own", id("userpack"))]);
    set_account_data(&synapse, &alice, "account_data/im.ponies.user_emotes", user_pack).await;
    let new_pack = pack_of("", &[("own", id("newpack"))]);
    set_account_data(&synapse, &alice, "account_data/m.image_pack", new_pack).await;
    let path = format!("rooms/{}/account_data/org.example", encoded(&room));
    set_account_data(&synapse, &alice, &path, json!({"url": uri(id("personal"))})).await;
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.sticker", encoded(&room));
    let sticker = json!({"body": "x", "url": uri(id("message")), "info": {}});
    assert_eq!(synapse.client(&alice, Method::POST, &path, sticker).await.0, 200);
    // A user without any file.
    let pack = pack_of("Borrowed", &[("cat", id("emote"))]);
    set_account_data(&synapse, &bob, "account_data/im.ponies.user_emotes", pack).await;

    let jobs = format!("{}{OTHER_JOBS}", job("except_rooms = [\"No *\"]"));
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs);
    synapse.forget_requests();
    let plan = program.dry_run("protect").await;
    let sent = synapse.requests();
    assert!(sent.iter().all(|request| request.starts_with("GET ")), "{sent:?}");
    let mut names: Vec<(&str, &str)> = ids.iter().map(|(name, id)| (*name, id.as_str())).collect();
    names.push(("!room", &room));
    insta::assert_snapshot!(targets(&plan, &names).join("\n"), @r#"
    planned avatar (avatar in #lobby:hs.test !room) (1)
    planned emote (image "cat" of the image pack "Cats" in #lobby:hs.test !room) (1)
    planned face (avatar of the image pack "Cats" in #lobby:hs.test !room) (1)
    planned newpack (image "own" of an image pack of @alice:hs.test) (1)
    planned sticker (image "dog" of an image pack in #lobby:hs.test !room) (1)
    planned thumbnail (thumbnail of the avatar in #lobby:hs.test !room) (1)
    planned userpack (image "own" of the image pack "Mine" of @alice:hs.test) (1)
    "#);
    let left_alone = json!({"excluded": 1, "no-members": 1, "protected": 1, "quarantined": 1});
    assert_eq!(plan["left_alone"], left_alone);
    assert_eq!(plan["message"], "1 file in use does not exist any more");
    let protected = program.apply("protect").await;
    assert_eq!(figures(&protected), "succeeded: 7/7/0/0/0", "{protected}");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");

    // What the job made can be undone, and that, too.
    let undone = undo(&program, &protected, &["--apply"]).await;
    assert_eq!(figures(&undone), "succeeded: 7/7/0/0/0", "{undone}");
    assert!(undone["changes"][0]["action"] == "unprotect-media");
    assert!(
        is_protected(&synapse, id("theirs")).await && !is_protected(&synapse, id("face")).await
    );
    let redone = undo(&program, &undone, &["--apply"]).await;
    assert_eq!(figures(&redone), "succeeded: 7/7/0/0/0", "{redone}");

    // A protected file cannot be quarantined any more, as `kinds` says.
    synapse.quarantine(id("emote")).await;
    let path = format!("/_synapse/admin/v1/media/hs.test/{}", id("emote"));
    assert_eq!(synapse.get(&path).await["media_info"]["quarantined_by"], Value::Null);

    let purged = program.apply("purge").await;
    assert_eq!(purged["outcome"], "succeeded", "{purged}");
    let mut kept = BTreeSet::new();
    for (name, id) in &ids {
        if synapse.media_exists(id).await {
            kept.insert(*name);
        }
    }
    let expected = [
        "avatar",
        "emote",
        "face",
        "newpack",
        "quarantined",
        "sticker",
        "theirs",
        "thumbnail",
        "userpack",
    ];
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_pack_that_replaces_another_one_is_found_and_files_that_nothing_uses_are_unprotected() {
    let synapse = Synapse::start().await;
    let alice = synapse.register("alice").await;
    let room = synapse.create_room(&alice, json!({"preset": "public_chat"})).await;
    let other = synapse.create_room(&alice, json!({"preset": "public_chat"})).await;
    let mut ids = Vec::new();
    for name in ["first", "second", "shared", "user", "theirs"] {
        ids.push(old(&synapse, &alice, name).await);
    }
    let [first, second, shared, user, theirs] = [0, 1, 2, 3, 4].map(|index| ids[index].as_str());
    synapse.protect(theirs).await;
    let pack = pack_of("", &[("a", first), ("b", shared), ("c", theirs)]);
    synapse.set_state(&alice, &room, (PACK, ""), pack).await;
    synapse.set_state(&alice, &other, (PACK, ""), pack_of("", &[("b", shared)])).await;
    let pack = "account_data/im.ponies.user_emotes";
    set_account_data(&synapse, &alice, pack, pack_of("", &[("u", user)])).await;
    let program = Program::new(&synapse.url, &synapse.admin.token, &job("unprotect_unused = true"));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 3/3/0/0/0");

    let path = format!("{ROOMS}{}", encoded(&room));
    let before = synapse.get(&path).await["state_events"].clone();
    synapse.set_state(&alice, &room, (PACK, ""), pack_of("", &[("a", second)])).await;
    assert_eq!(synapse.get(&path).await["state_events"], before);
    set_account_data(&synapse, &alice, pack, json!({})).await;
    let bob = synapse.register("bob").await;
    let fresh = synapse.upload(&bob, b"fresh").await;
    set_account_data(&synapse, &bob, pack, pack_of("", &[("f", &fresh)])).await;
    let changed = program.apply("protect").await;
    assert_eq!(figures(&changed), "succeeded: 4/4/0/0/0", "{changed}");
    let expected = [
        format!("done {fresh} (image \"f\" of an image pack of @bob:hs.test) (1)"),
        format!("done {first} (not in use any more in {room}) (1)"),
        format!("done {second} (image \"a\" of an image pack in {room}) (1)"),
        format!("done {user} (not in use any more in @alice:hs.test) (1)"),
    ];
    assert_eq!(changes(&changed).into_iter().collect::<BTreeSet<_>>(), expected.into());
    let mut protected = Vec::new();
    for id in &ids {
        protected.push(is_protected(&synapse, id).await);
    }
    assert_eq!(protected, [false, true, true, false, true]);

    // Both rooms are deleted: the last use of the shared file goes with the second one.
    for (room, unprotected) in [(&room, second), (&other, shared)] {
        let path = format!("/_synapse/admin/v2/rooms/{}", encoded(room));
        assert_eq!(synapse.admin(Method::DELETE, &path, json!({"purge": true})).await.0, 200);
        let path = format!("{ROOMS}{}", encoded(room));
        until("the room is purged", 30, async || {
            synapse.admin(Method::GET, &path, Value::Null).await.0 == 404
        })
        .await;
        let changed = program.apply("protect").await;
        let expected = format!("done {unprotected} (not in use any more in !");
        let lines = changes(&changed);
        assert!(lines.len() == 1 && lines[0].starts_with(&expected), "{lines:?}");
        assert!(!is_protected(&synapse, unprotected).await);
    }
    assert!(is_protected(&synapse, theirs).await);
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
}

// What the job reads.

fn room_id(number: usize) -> String {
    format!("!r{number:05}:{SERVER_NAME}")
}

fn images(ids: &[&str]) -> Value {
    let images: serde_json::Map<String, Value> = ids
        .iter()
        .map(|id| ((*id).to_owned(), json!({"url": format!("mxc://{SERVER_NAME}/{id}")})))
        .collect();
    json!({ "images": images })
}

/// Uploads a file and puts it into the pack of a room.
fn add_image(world: &mut World, room: usize, id: &str) {
    world.media(&format!("@alice:{SERVER_NAME}"), id, 10, 1_700_000_000_000, None);
    world.room(&room_id(room)).set_state(PACK, "", &images(&[id]));
}

/// A homeserver with rooms, of which the first ones have a pack with one image, `img0` and so on.
fn fake(rooms: usize, with_pack: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        world.user(&format!("@alice:{SERVER_NAME}"));
        for number in 0..rooms {
            world.room(&room_id(number));
        }
        for number in 0..with_pack {
            add_image(world, number, &format!("img{number}"));
        }
    });
    fake
}

fn program(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &job(keys))
}

/// The rooms whose state was read, each request once.
fn rooms_read(fake: &Fake) -> Vec<String> {
    let requests = fake.requests().into_iter();
    let mut rooms: Vec<String> = requests
        .filter(|seen| seen.path.ends_with("/state"))
        .map(|seen| seen.path.replace("%21", "!").replace("%3A", ":"))
        .map(|path| path[ROOMS.len()..path.len() - "/state".len()].to_owned())
        .collect();
    rooms.sort();
    rooms
}

fn protected(fake: &Fake) -> Vec<String> {
    let is_protected = |world: &mut World| {
        let files = world.files().iter().filter(|(_, file)| file.protected);
        files.map(|(id, _)| id.clone()).collect()
    };
    fake.world(is_protected)
}

#[tokio::test]
async fn the_second_night_reads_what_changed_and_a_few_packs_again() {
    let fake = fake(20_000, 60);
    let program = program(&fake, "max_changes = \"unlimited\"");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 60/60/0/0/0");
    assert_eq!(rooms_read(&fake).len(), 20_000);
    fake.forget();
    fake.world(|world| {
        for number in 100..150 {
            world.room(&room_id(number)).joined(&format!("@alice:{SERVER_NAME}"));
        }
        for number in 100..108 {
            add_image(world, number, &format!("new{number}"));
        }
        // Neither of these shows in the list of rooms.
        add_image(world, 0, "replaced0");
        add_image(world, 59, "replaced59");
    });
    let second = program.apply("protect").await;
    assert_eq!(figures(&second), "succeeded: 9/9/0/0/0", "{second}");
    assert_eq!(rooms_read(&fake).len(), 75);
    let requests = fake.requests().len();
    assert!(requests <= 120, "{requests}");

    // The other one is found in its turn, after two more nights.
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 1/1/0/0/0");
    assert!(protected(&fake).contains(&"replaced59".to_owned()));
}

#[tokio::test]
async fn what_may_have_changed_unseen_is_read_within_a_week() {
    let fake = fake(100, 80);
    let program = program(&fake, "");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 80/80/0/0/0");
    // Seven days later: the time is the second word.
    let days_ago = |days: i64| {
        let ms = chrono::TimeDelta::days(days).num_milliseconds();
        let time = "CAST(substr(value, instr(value, ' ') + 1, 13) AS BIGINT)";
        format!(
            "UPDATE facts SET value = substr(value, 1, instr(value, ' ')) || CAST({time} - {ms} AS TEXT) || substr(value, instr(value, ' ') + 14) WHERE topic = 'media-uses' AND key LIKE '!%'"
        )
    };
    let days_ago = |days| match crate::program::on_postgres() {
        true => days_ago(days).replace("instr(value, ' ')", "position(' ' in value)"),
        false => days_ago(days),
    };
    program.sql(&days_ago(4)).await;
    fake.forget();
    program.apply("protect").await;
    let mut read: BTreeSet<String> = rooms_read(&fake).into_iter().collect();
    assert!((26..80).contains(&read.len()), "{read:?}");
    program.sql(&days_ago(3)).await;
    program.apply("protect").await;
    read.extend(rooms_read(&fake));
    assert_eq!(read.len(), 80, "rooms without packs are not read");
}

#[tokio::test]
async fn a_room_that_is_gone_is_forgotten_and_read_again_if_it_returns() {
    let fake = fake(3, 2);
    let program = program(&fake, "");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 2/2/0/0/0");
    let (gone, plain) = fake
        .world(|world| [1, 2].map(|number| world.rooms.remove(&room_id(number)).unwrap()))
        .into();
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    fake.world(|world| {
        world.rooms.insert(room_id(1), gone);
        world.rooms.insert(room_id(2), plain);
    });
    fake.forget();
    let report = program.apply("protect").await;
    // Nobody knows any more who protected its image.
    assert_eq!(report["left_alone"], json!({"protected": 1}), "{report}");
    assert_eq!(rooms_read(&fake), [room_id(0), room_id(1), room_id(2)]);
}

#[tokio::test]
async fn a_room_that_only_the_list_lacks_is_not_forgotten() {
    let fake = fake(2, 2);
    let program = program(&fake, "unprotect_unused = true");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 2/2/0/0/0");
    let list = json!({"rooms": [], "offset": 0, "total_rooms": 0}).to_string();
    let answer = Trouble::Answer { status: 200, headers: Vec::new(), body: list };
    fake.fault(Fault::new("GET", "/_synapse/admin/v1/rooms", answer));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    assert_eq!(protected(&fake), ["img0", "img1"]);
    let next = program.apply("protect").await;
    assert_eq!(
        (figures(&next), &next["left_alone"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &json!({}))
    );
}

#[tokio::test]
async fn rooms_with_users_of_other_servers_are_first_read_by_type() {
    let fake = fake(2, 2);
    fake.world(|world| {
        world.room(&room_id(1)).joined("@bob:far.test");
    });
    let program = program(&fake, "");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 2/2/0/0/0");
    let types = |fake: &Fake| {
        let state = |path: &str| path.ends_with("/state");
        let mut queries: Vec<String> = fake
            .requests()
            .into_iter()
            .filter(|seen| state(&seen.path))
            .map(|it| it.query)
            .collect();
        queries.sort();
        queries
    };
    let by_type =
        ["", "type=im.ponies.room_emotes", "type=m.room.avatar", "type=m.room.image_pack"];
    assert_eq!(types(&fake), by_type);
    fake.forget();
    program.apply("protect").await;
    assert_eq!(types(&fake), ["", ""]);
}

#[tokio::test]
async fn a_room_whose_state_synapse_still_waits_for_does_not_hold_up_the_others() {
    let fake = fake(2, 2);
    let program = program(&fake, "");
    let config = program.read("microglia.toml");
    program
        .write("microglia.toml", &config.replace("\nurl = ", "\nrequest_timeout = \"1s\"\nurl = "));
    let state = format!("{ROOMS}{}/state", room_id(0));
    fake.fault(Fault::new("GET", &state, Trouble::Hang).times(4));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 2/2/0/0/0");
}

#[tokio::test]
async fn users_are_read_who_uploaded_something_or_have_packs() {
    let fake = fake(1, 0);
    let id = |name: &str| format!("@{name}:{SERVER_NAME}");
    let pack = |world: &mut World, user: &str, image: &str| {
        let data = &mut world.user(&id(user)).account_data;
        data.insert("im.ponies.user_emotes".to_owned(), images(&[image]));
    };
    fake.world(|world| {
        for name in ["pack", "plain", "idle"] {
            world.user(&id(name));
        }
        world.media(&id("pack"), "one", 10, 1_700_000_000_000, None);
        world.media(&id("plain"), "two", 10, 1_700_000_000_000, None);
        world.media(&id("unlisted"), "three", 10, 1_700_000_000_000, None);
        pack(world, "pack", "one");
    });
    let program = program(&fake, "unprotect_unused = true");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 1/1/0/0/0");
    let users_read = |fake: &Fake| {
        let read = fake.requests().into_iter().filter(|it| it.path.ends_with("/accountdata"));
        let mut read: Vec<String> = read
            .map(|it| it.path.replace("%40", "@").replace("%3A", ":"))
            .map(|path| {
                path["/_synapse/admin/v1/users/@".len()..].split(':').next().unwrap().to_owned()
            })
            .collect();
        read.sort();
        read
    };
    assert_eq!(users_read(&fake), ["pack", "plain", "unlisted"]);
    fake.forget();
    fake.world(|world| {
        let now = world.now().timestamp_millis();
        world.media(&id("idle"), "four", 10, now, None);
        pack(world, "idle", "four");
        // Of somebody else's file, which shows nowhere.
        pack(world, "plain", "two");
    });
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 1/1/0/0/0");
    assert_eq!(users_read(&fake), ["idle", "pack"]);
    assert_eq!(protected(&fake), ["four", "one"]);

    // An account that is gone is forgotten with what was protected for it.
    fake.world(|world| world.users.remove(&id("idle")).unwrap());
    let report = program.apply("protect").await;
    assert_eq!(
        (figures(&report), protected(&fake)),
        ("succeeded: 1/1/0/0/0".to_owned(), vec!["one".to_owned()])
    );
    fake.world(|world| world.remove_file("four"));
    program.apply("protect").await;
    fake.forget();
    program.apply("protect").await;
    assert_eq!(users_read(&fake), ["pack"]);

    // Another selection of users looks at all uploads.
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &format!("{config}creators = [\"@plain:*\", \"@nobody:*\"]\n"));
    let report = program.apply("protect").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{report}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("`@nobody:*` in `creators` created no room"), "{message}");
    assert_eq!(protected(&fake), ["one", "two"]);
}

// What it protects.

#[tokio::test]
async fn rooms_are_chosen_by_name_and_creator() {
    let fake = fake(4, 4);
    let bob = format!("@bob:{SERVER_NAME}");
    fake.world(|world| {
        world.room(&room_id(0)).alias(&format!("#lobby:{SERVER_NAME}"));
        world.room(&room_id(1)).name = Some("Lounge".to_owned());
        world.room(&room_id(2)).name = Some("Lounge for staff".to_owned());
        let other = world.room(&room_id(3));
        other.name = Some("Lounge of bob".to_owned());
        other.creator = bob;
    });
    let keys = "rooms = [\"#lobby:*\", \"Lounge*\", \"#typo:*\"]\nexcept_rooms = [\"* staff\"]\ncreators = [\"@microglia:*\"]";
    let report = program(&fake, keys).apply("protect").await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0", "{report}");
    assert_eq!(protected(&fake), ["img0", "img1"]);
    assert_eq!(report["left_alone"], json!({"excluded": 1}));
    assert_eq!(report["message"], "`#typo:*` in `rooms` matched no room");
}

#[tokio::test]
async fn any_state_counts_with_custom_but_avatars_of_members_never_do() {
    let fake = fake(1, 0);
    fake.world(|world| {
        for id in ["background", "text", "member"] {
            world.media(&format!("@alice:{SERVER_NAME}"), id, 10, 1_700_000_000_000, None);
        }
        let url = |id: &str| json!({"url": format!("mxc://{SERVER_NAME}/{id}")});
        let html = json!({"html": format!("<img src=\"mxc://{SERVER_NAME}/text\">")});
        let room = world.room(&room_id(0));
        room.set_state("org.example.background", "", &url("background"));
        room.set_state("m.room.topic", "", &html);
        room.set_state("m.room.member", "@x:far.test", &url("member"));
    });
    let program = program(&fake, "custom = false");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    let config = program.read("microglia.toml").replace("custom = false", "custom = true");
    program.write("microglia.toml", &config);
    let checked = program.run(&["check"]).await;
    let warning = "can have any file protected, which can then no longer be quarantined: limit that with `rooms` or `creators`";
    assert!(checked.code == 0 && checked.stderr.contains(warning), "{checked:?}");
    let report = program.apply("protect").await;
    assert_eq!(protected(&fake), ["background", "text"], "{report}");
    // What the job protected before is still in use, whatever its keys are now.
    let config = config.replace("custom = true", "unprotect_unused = true");
    program.write("microglia.toml", &config);
    fake.world(|world| {
        world.room(&room_id(0)).joined(&format!("@alice:{SERVER_NAME}"));
    });
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    assert_eq!(protected(&fake), ["background", "text"]);
}

#[tokio::test]
async fn only_what_the_kind_protected_is_unprotected_and_never_against_somebody() {
    let fake = fake(2, 2);
    fake.world(|world| world.file_mut("img1").unwrap().protected = true);
    let program = program(&fake, "unprotect_unused = false");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 1/1/0/0/0");
    // By hand, perhaps to quarantine it.
    fake.world(|world| world.file_mut("img0").unwrap().protected = false);
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    fake.world(|world| world.file_mut("img0").unwrap().protected = true);
    fake.world(|world| {
        for room in [0, 1] {
            world.room(&room_id(room)).set_state(PACK, "", &json!({}));
        }
    });
    let report = program.apply("protect").await;
    assert_eq!(
        report["message"],
        "1 file that this kind protected are not in use any more (`unprotect_unused = true` unprotects such files)"
    );
    let config = program.read("microglia.toml").replace("unused = false", "unused = true");
    program.write("microglia.toml", &config);
    let report = program.apply("protect").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{report}");
    assert_eq!(protected(&fake), ["img1"]);
    assert_eq!((fake.count("POST", UNPROTECT), report["message"].as_str()), (1, None));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
}

#[tokio::test]
async fn undo_restores_what_a_run_protected_and_unprotected_and_nothing_else() {
    let fake = fake(4, 4);
    fake.world(|world| world.file_mut("img3").unwrap().protected = true);
    let program = program(&fake, "unprotect_unused = true");
    let first = program.apply("protect").await;
    assert_eq!(figures(&first), "succeeded: 3/3/0/0/0");
    fake.world(|world| {
        world.room(&room_id(0)).set_state(PACK, "", &json!({}));
        add_image(world, 1, "new");
    });
    let second = program.apply("protect").await;
    assert_eq!(figures(&second), "succeeded: 3/3/0/0/0", "{second}");
    assert_eq!(protected(&fake), ["img2", "img3", "new"]);

    let shown = undo(&program, &second, &[]).await;
    assert_eq!(figures(&shown), "succeeded: 3/0/0/0/0");
    let undone = undo(&program, &second, &["--apply"]).await;
    assert_eq!(figures(&undone), "succeeded: 3/3/0/0/0");
    assert_eq!(protected(&fake), ["img0", "img1", "img2", "img3"]);
    let redone = undo(&program, &undone, &["--apply"]).await;
    assert_eq!(figures(&redone), "succeeded: 3/3/0/0/0");
    assert_eq!(protected(&fake), ["img2", "img3", "new"]);

    // Of the first run only what is still protected and still there.
    fake.world(|world| world.remove_file("img2"));
    let undone = undo(&program, &first, &["--apply"]).await;
    assert_eq!(figures(&undone), "succeeded: 0/0/0/0/0", "{undone}");
    let message = undone["message"].as_str().unwrap();
    assert!(message.contains("1 item not restored: the file does not exist any more"), "{message}");
    assert!(
        message.contains("2 items not restored: the file is not protected any more"),
        "{message}"
    );
    // The job still names the file, and protects it again.
    let undone = undo(&program, &second, &["--apply"]).await;
    assert_eq!(
        (figures(&undone), protected(&fake)),
        ("succeeded: 3/3/0/0/0".to_owned(), ["img0", "img1", "img3"].map(str::to_owned).to_vec())
    );
    let again = program.apply("protect").await;
    assert!(protected(&fake).contains(&"new".to_owned()), "{again}");
}

#[tokio::test]
async fn limits_count_files_and_the_next_run_continues() {
    let fake = fake(5, 5);
    let program = program(&fake, "max_changes = 4");
    let refused = program.apply("protect").await;
    assert_eq!((figures(&refused), protected(&fake).len()), ("refused: 5/0/0/0/5".to_owned(), 0));
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &format!("{config}at_most = 3\n"));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 3/3/0/0/2");
    fake.forget();
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 2/2/0/0/0");
    assert_eq!(protected(&fake).len(), 5);
    assert_eq!(fake.count("POST", PROTECT), 2);
}

#[tokio::test]
async fn files_of_users_that_are_left_for_later_are_planned_again() {
    let fake = fake(1, 0);
    fake.world(|world| {
        for number in 0..40 {
            let (user, id) = (format!("@user{number}:{SERVER_NAME}"), format!("img{number}"));
            world.media(&user, &id, 10, 1_700_000_000_000, None);
            let data = &mut world.user(&user).account_data;
            data.insert("im.ponies.user_emotes".to_owned(), images(&[&id]));
        }
    });
    let program = program(&fake, "at_most = 4");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 4/4/0/0/36");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 4/4/0/0/32");
}

#[tokio::test]
async fn an_approved_plan_protects_its_files_and_no_others() {
    let fake = fake(3, 2);
    let program = program(&fake, "mode = \"approve\"");
    let plan = program.json(&["run", "protect", "--json"]).await;
    assert_eq!((&plan["planned"], &plan["approval"]["state"]), (&json!(2), &json!("pending")));
    fake.world(|world| {
        add_image(world, 2, "later");
        world.file_mut("img1").unwrap().quarantined = true;
    });
    let daemon = program.serve().await;
    let approved = program.run(&["approve", &plan["id"].to_string()]).await;
    assert_eq!(approved.code, 0, "{approved:?}");
    until("the end", 20, async || program.ended("protect").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(protected(&fake), ["img0"]);
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 1/1/0/0/0");
    assert_eq!(protected(&fake), ["img0", "later"]);
}

// Faults.

/// What happens between plan and change, and why the change is then skipped.
type Happened = (fn(&mut World), &'static str);

#[tokio::test]
async fn a_file_that_changed_since_the_plan_is_left_alone() {
    let quarantined = |world: &mut World| world.file_mut("img0").unwrap().quarantined = true;
    let protected = |world: &mut World| world.file_mut("img0").unwrap().protected = true;
    let deleted = |world: &mut World| world.remove_file("img0");
    let happened: [Happened; 3] = [
        (quarantined, "the file is quarantined"),
        (protected, "the file is protected"),
        (deleted, "the file does not exist any more"),
    ];
    for (happens, why) in happened {
        let fake = fake(1, 1);
        fake.fault(Fault::new("GET", FILES, Trouble::Then(happens)));
        let report = program(&fake, "").apply("protect").await;
        assert_eq!(
            (figures(&report), fake.count("POST", PROTECT)),
            ("succeeded: 1/0/0/1/0".to_owned(), 0)
        );
        assert_eq!(report["changes"][0]["detail"], why);
    }
    // In the last moment.
    let fake = fake(1, 1);
    fake.fault(Fault::new("GET", FILES, Trouble::Then(deleted)).after(1));
    let report = program(&fake, "").apply("protect").await;
    assert_eq!(
        (figures(&report), fake.count("POST", PROTECT)),
        ("succeeded: 1/0/0/1/0".to_owned(), 1)
    );
    assert_eq!(report["changes"][0]["detail"], "the file does not exist any more");
}

#[tokio::test]
async fn a_lost_response_is_asked_for_again() {
    for trouble in [
        Trouble::CutBefore,
        Trouble::CutAfter,
        Trouble::BrokenJson,
        Trouble::ProxyAfter(504),
        Trouble::Proxy(503),
        Trouble::Limited { retry_after_ms: Some(100), retry_after_header: None },
    ] {
        let fake = fake(4, 4);
        fake.fault(Fault::new("POST", PROTECT, trouble.clone()).after(1));
        let report = program(&fake, "retries = { first_delay = \"1s\" }").apply("protect").await;
        assert_eq!(figures(&report), "succeeded: 4/4/0/0/0", "{trouble:?}: {report}");
        assert_eq!(protected(&fake).len(), 4, "{trouble:?}");
    }
    // Lost each time: the next attempt sees that the file is protected.
    let fake = fake(2, 2);
    fake.fault(Fault::new("POST", &format!("{PROTECT}img1"), Trouble::CutAfter).times(4));
    let report = program(&fake, "retries = { first_delay = \"1s\" }").apply("protect").await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0", "{report}");
    assert_eq!(report["attempts"], 2);
    let detail = "the response was lost; the new plan shows that the change was made";
    assert!(changes(&report).iter().any(|line| line.ends_with(detail)), "{report}");
    assert_eq!(report["left_alone"], json!({}));
}

#[tokio::test]
async fn reading_survives_faults_and_what_cannot_be_read_changes_nothing() {
    let state = format!("{ROOMS}{}/state", room_id(0));
    for trouble in [
        Trouble::CutBody,
        Trouble::BrokenJson,
        Trouble::Proxy(502),
        Trouble::Synapse(500, "M_UNKNOWN", "Internal server error"),
        Trouble::Limited { retry_after_ms: Some(100), retry_after_header: None },
    ] {
        let fake = fake(2, 2);
        fake.fault(Fault::new("GET", &state, trouble.clone()));
        let report = program(&fake, "").apply("protect").await;
        assert_eq!(figures(&report), "succeeded: 2/2/0/0/0", "{trouble:?}: {report}");
    }
    let malformed =
        |body: Value| Trouble::Answer { status: 200, headers: Vec::new(), body: body.to_string() };
    for body in [json!({}), json!({"state": {}}), json!({"state": [5]}), json!({"state": null})] {
        let fake = fake(2, 2);
        fake.fault(Fault::new("GET", &state, malformed(body.clone())).always());
        let report = program(&fake, "retries = { attempts = 1 }").apply("protect").await;
        assert_eq!(report["outcome"], "failed", "{body}: {report}");
        assert_eq!(protected(&fake), [""; 0], "{body}");
        fake.no_more_faults();
        let report = program(&fake, "").apply("protect").await;
        assert_eq!(figures(&report), "succeeded: 2/2/0/0/0", "{body}");
    }
    // A room that Synapse refuses to show fails alone, and one that vanished does not matter.
    let fake = fake(3, 3);
    fake.fault(Fault::new("GET", &state, Trouble::Synapse(403, "M_FORBIDDEN", "No")));
    let gone = format!("{ROOMS}{}/state", room_id(1));
    fake.fault(Fault::new("GET", &gone, Trouble::Synapse(404, "M_NOT_FOUND", "Room not found")));
    let program = program(&fake, "");
    let report = program.apply("protect").await;
    assert_eq!(figures(&report), "partial: 2/1/1/0/0", "{report}");
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 2/2/0/0/0");
}

#[tokio::test]
async fn kill_9_in_the_middle_leads_to_the_same_result_as_no_kill() {
    let fake = fake(40, 40);
    let program = program(&fake, "unprotect_unused = true");
    let release = Arc::new(Semaphore::new(0));
    let held = Trouble::Held(Arc::clone(&release));
    fake.fault(Fault::new("POST", PROTECT, held).after(15).always());
    let mut child = program.command(&["run", "protect", "--apply", "--json"]).spawn().unwrap();
    until("requests that hang", 20, async || fake.count("POST", PROTECT) == 19).await;
    child.kill().await.unwrap();
    release.add_permits(1000);
    let report = program.apply("protect").await;
    // Those that were under way are known to be the job's own.
    assert_eq!(figures(&report), "succeeded: 21/21/0/0/0", "{report}");
    assert_eq!(report["left_alone"], json!({}));
    assert_eq!(protected(&fake).len(), 40);
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 0/0/0/0/0");
    // All of them are unprotected when nothing uses them any more, and again protected after that.
    let packs = |world: &mut World, is_used: bool| {
        for room in 0..40 {
            let images = if is_used { images(&[&format!("img{room}")]) } else { json!({}) };
            let room = world.room(&room_id(room));
            room.set_state(PACK, "", &images).joined(&format!("@{is_used}:{SERVER_NAME}"));
        }
    };
    fake.world(|world| packs(world, false));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 40/40/0/0/0");
    assert_eq!(protected(&fake), [""; 0]);
    fake.world(|world| packs(world, true));
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 40/40/0/0/0");
    // The run that was killed can be undone, with what was under way.
    let runs = program.json(&["runs", "--json"]).await;
    let killed = runs.as_array().unwrap().iter().find(|run| run["outcome"] == "interrupted");
    let undone = undo(&program, killed.unwrap(), &["--apply"]).await;
    assert_eq!(
        (figures(&undone), protected(&fake).len()),
        ("succeeded: 19/19/0/0/0".to_owned(), 21)
    );
}

#[tokio::test]
async fn kill_9_while_reading_loses_little_of_what_was_read() {
    let fake = fake(1000, 500);
    let program = program(&fake, "");
    let release = Arc::new(Semaphore::new(0));
    let state = format!("{ROOMS}{}/state", room_id(900));
    fake.fault(Fault::new("GET", &state, Trouble::Held(Arc::clone(&release))));
    let mut child = program.command(&["run", "protect", "--apply"]).spawn().unwrap();
    until("a room that hangs", 30, async || fake.count("GET", &state) == 1).await;
    child.kill().await.unwrap();
    release.add_permits(10);
    fake.forget();
    assert_eq!(figures(&program.apply("protect").await), "succeeded: 500/500/0/0/0");
    // Rooms with files that are still to be protected, and those that were not read.
    let read = rooms_read(&fake).len();
    assert!((600..=800).contains(&read), "{read}");
}

#[tokio::test]
async fn a_homeserver_that_cannot_be_asked_about_a_file_is_refused() {
    let fake = fake(1, 1);
    fake.world(|world| world.version = "1.139.2".to_owned());
    let report = program(&fake, "").apply("protect").await;
    assert_eq!(
        report["message"],
        "main runs Synapse 1.139.2, and protect-media requires 1.140 or later: upgrade Synapse"
    );
}
