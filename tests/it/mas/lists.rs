//! Lists: walked by ids, with filters that MAS must have understood.

use microglia::mas::{CreatedLink, Links, UserStatus};

use super::{Setup, ulid};
use crate::fake::{Fault, Provider, Trouble};

const LINKS: &str = "/api/admin/v1/upstream-oauth-links";

/// A MAS with one provider, one user and that many links, and the ids of the first two.
fn with_links(count: usize) -> (Setup, String, String) {
    let mas = Setup::new();
    let (provider, user) = mas.homeserver.world(|world| {
        let service = &mut world.auth_service;
        let provider = service.provider(Provider::default());
        let user = service.user("alice");
        for number in 0..count {
            service.link(&provider, &format!("sub-{number}"), Some(&user));
        }
        (provider, user)
    });
    (mas, provider, user)
}

#[tokio::test]
async fn a_list_is_walked_by_its_ids_whatever_its_links_say() {
    let (mas, provider, user) = with_links(2500);
    let reader = mas.reader();
    let links = reader.links(Links::All).await.unwrap();
    assert_eq!(links.len(), 2500);
    assert_eq!(mas.internal.count("GET", LINKS), 3);
    assert_eq!(links[7].attributes.subject, "sub-7");
    assert_eq!(links[7].attributes.provider_id.as_str(), provider);
    assert_eq!(links[7].attributes.user_id.as_ref().unwrap().as_str(), user);
    let page = reader.links_page(Links::OfUser(&ulid(&user)), Some(&links[2498].id)).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (1, None));
    let page = reader.links_page(Links::All, None).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (1000, Some(links[999].id.clone())));
}

#[tokio::test]
async fn a_page_that_mas_cannot_serve_is_asked_for_in_half_its_size() {
    let (mas, ..) = with_links(700);
    mas.internal.fault(Fault::new("GET", LINKS, Trouble::Proxy(504)).times(2));
    assert_eq!(mas.reader().links(Links::All).await.unwrap().len(), 700);
    let sizes: Vec<String> = mas
        .internal
        .requests()
        .iter()
        .filter(|seen| seen.path == LINKS)
        .map(|seen| seen.query.split("first%5D=").nth(1).unwrap_or("?").to_owned())
        .map(|rest| rest.split('&').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(sizes, ["1000", "500", "250", "250", "250"]);
}

#[tokio::test]
async fn a_filter_that_mas_ignores_is_an_error_and_not_a_list_of_everybody() {
    let (mas, provider, user) = with_links(3);
    let reader = mas.reader();
    mas.homeserver.world(|world| {
        let ignored = &mut world.auth_service.unknown_filters;
        ignored.extend(["filter[user]", "filter[status]", "filter[subject]"]);
    });
    let error = reader.links(Links::OfUser(&ulid(&user))).await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error).replace(&user, "USER"), @"GET /api/admin/v1/upstream-oauth-links: MAS applied no filter instead of filter[user]=USER, so this may list everything: upgrade MAS");
    let error = reader.users(UserStatus::Locked).await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"GET /api/admin/v1/users: MAS applied no filter instead of filter[status]=locked, so this may list everything: upgrade MAS");
    let error = reader.link_of(&ulid(&provider), "sub-1").await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"GET /api/admin/v1/upstream-oauth-links: MAS ignored a filter of this list: upgrade MAS");
}

#[tokio::test]
async fn a_list_that_does_not_make_progress_or_has_too_many_rows_is_an_error() {
    let (mas, ..) = with_links(0);
    let reader = mas.reader();
    let row = |id: &str| serde_json::json!({"type": "user", "id": id, "attributes": {"username": "a", "created_at": "2026-01-01T00:00:00Z", "admin": false, "legacy_guest": false}, "links": {"self": "/"}});
    let ids = ["01J44RKQYM4G3TNVANTMTDYTX6", "01J44RKQYM4G3TNVANTMTDYTX6"];
    let links = serde_json::json!({"self": "/api/admin/v1/users", "next": "/api/admin/v1/users"});
    for (rows, expected) in [
        (ids.map(row).to_vec(), "this list does not make progress: its ids do not ascend"),
        (vec![row(ids[0]); 1001], "a page has 1001 rows instead of at most 1000"),
    ] {
        let body = serde_json::json!({"data": rows, "links": links}).to_string();
        let answer = Trouble::Answer { status: 200, headers: vec![], body };
        mas.internal.fault(Fault::new("GET", "/api/admin/v1/users", answer));
        let error = reader.users_page(None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn accounts_are_listed_by_their_state_and_found_by_name_and_id() {
    let mas = Setup::new();
    let id = mas.homeserver.world(|world| {
        let service = &mut world.auth_service;
        for name in ["alice", "bob", "carol"] {
            service.user(name);
        }
        let at = || Some("2026-11-24T15:50:10.420996118Z".to_owned());
        for user in service.users.values_mut().filter(|user| user.username != "carol") {
            user.locked_at = at();
            user.deactivated_at = at().filter(|_| user.username == "bob");
            user.admin = user.username == "alice";
        }
        service.users.iter().find(|(_, user)| user.username == "alice").unwrap().0.clone()
    });
    let reader = mas.reader();
    let mut lists = Vec::new();
    for status in [UserStatus::Active, UserStatus::Locked, UserStatus::Deactivated] {
        let users = reader.users(status).await.unwrap();
        lists.push(users.into_iter().map(|user| user.attributes.username).collect::<Vec<_>>());
    }
    assert_eq!(lists, [vec!["carol"], vec!["alice", "bob"], vec!["bob"]]);
    let alice = reader.user(&ulid(&id)).await.unwrap().unwrap();
    assert_eq!(reader.user_by_name("ALICE").await.unwrap().as_ref(), Some(&alice));
    assert!(alice.attributes.admin && alice.attributes.locked_at.is_some());
    assert_eq!(reader.users_page(None).await.unwrap().rows.len(), 3);
    let config = reader.site_config().await.unwrap();
    assert_eq!(config.server_name, crate::fake::SERVER_NAME);
}

#[tokio::test]
async fn a_link_is_deleted_once_and_created_again_unless_somebody_has_taken_it() {
    let (mas, provider, user) = with_links(2);
    let (reader, writer) = (mas.reader(), mas.writer());
    let (provider, user) = (ulid(&provider), ulid(&user));
    let subject = "sub-1&filter[user]=x";
    mas.homeserver.world(|world| {
        let link = world.auth_service.links.values_mut().last().unwrap();
        link.subject = subject.to_owned();
    });
    let link = reader.link_of(&provider, subject).await.unwrap().unwrap();
    assert_eq!(reader.link(&link.id).await.unwrap().as_ref(), Some(&link));
    writer.delete_link(&link.id).await.unwrap();
    writer.delete_link(&link.id).await.unwrap();
    assert_eq!(reader.link_of(&provider, subject).await.unwrap(), None);
    let created = writer.create_link(&user, &provider, subject, Some("Alice")).await.unwrap();
    let CreatedLink::New(new) = created else { panic!("{created:?}") };
    assert_ne!(new.id, link.id);
    assert_eq!(new.attributes.human_account_name.as_deref(), Some("Alice"));
    let error = writer.create_link(&user, &provider, subject, None).await.unwrap_err();
    assert!(error.to_string().contains("is already linked to a user"), "{error}");
    mas.homeserver.world(|world| {
        world.auth_service.links.get_mut(new.id.as_str()).unwrap().user_id = None;
    });
    let adopted = writer.create_link(&user, &provider, subject, None).await.unwrap();
    assert!(matches!(adopted, CreatedLink::Adopted(link) if link.id == new.id));
    assert_eq!(reader.providers().await.unwrap().len(), 1);
}
