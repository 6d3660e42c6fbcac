//! `check --online` where MAS manages the accounts.

use super::Setup;
use crate::fake::{Fault, Trouble};

/// A homeserver whose account can have a token, after a change that breaks something.
fn setup(breaks: impl FnOnce(&Setup)) -> Setup {
    let mas = Setup::new();
    std::fs::create_dir_all(mas.program.path("state")).unwrap();
    mas.homeserver.world(|world| world.auth_service.user("microglia"));
    breaks(&mas);
    mas
}

/// What it prints about the homeserver, with names in place of addresses, and its exit code.
async fn checked(breaks: impl FnOnce(&Setup)) -> String {
    let mas = setup(breaks);
    let output = mas.program.run(&["check", "--online"]).await;
    let text = format!("{}{}", output.stdout, output.stderr);
    let lines = text.lines().filter(|line| line.starts_with("main: "));
    let mut text: String = lines.map(|line| format!("{line}\n")).collect();
    if output.stdout.contains("admin_clients:\n") {
        text.push_str("followed by what to add to the configuration of MAS\n");
    }
    let addresses = [
        (mas.homeserver.url(), "HOMESERVER"),
        (mas.public.url(), "PUBLIC"),
        (mas.internal.url(), "INTERNAL"),
        (mas.program.path("").display().to_string(), "DIR/"),
    ];
    let text = addresses.iter().fold(text, |text, (url, name)| text.replace(url, name));
    // Devices are random.
    let text = text.split("MICROGLIA").map(|part| {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_uppercase());
        if part.len() - rest.len() == 8 { format!("DEVICE{rest}") } else { part.to_owned() }
    });
    format!("exit code {}\n{}", output.code, text.collect::<String>())
}

fn edit(mas: &Setup, from: &str, to: &str) {
    let config = mas.program.read("microglia.toml");
    assert!(config.contains(from), "{from} is not in {config}");
    mas.program.write("microglia.toml", &config.replace(from, to));
}

#[tokio::test]
async fn all_is_well_where_mas_issues_the_token() {
    insta::assert_snapshot!(checked(|_| {}).await);
}

#[tokio::test]
async fn a_mas_that_is_down_says_neither_yes_nor_no_about_the_token() {
    insta::assert_snapshot!(
        checked(|mas| {
            mas.public.go_down();
            mas.internal.go_down();
            mas.homeserver.world(|world| world.auth_service.is_down = true);
        })
        .await
    );
}

#[tokio::test]
async fn a_listener_without_the_admin_api_is_named_with_what_to_add_to_the_configuration_of_mas() {
    insta::assert_snapshot!(
        checked(|mas| {
            edit(mas, &format!("admin_url = \"{}\"", mas.internal.url()), "");
        })
        .await
    );
}

#[tokio::test]
async fn a_client_that_mas_does_not_accept_or_not_allow_is_told_apart() {
    insta::assert_snapshot!(
        "wrong_secret",
        checked(|mas| {
            mas.program.write("mas-client-secret", "another");
        })
        .await
    );
    insta::assert_snapshot!(
        "not_an_admin_client",
        checked(|mas| {
            mas.homeserver.world(|world| {
                for client in world.auth_service.clients.values_mut() {
                    client.admin = false;
                }
            });
        })
        .await
    );
}

#[tokio::test]
async fn an_account_that_is_missing_or_locked_is_named() {
    insta::assert_snapshot!(
        "locked",
        checked(|mas| {
            mas.homeserver.world(|world| {
                for user in world.auth_service.users.values_mut() {
                    user.locked_at = Some("2026-11-24T15:50:10Z".to_owned());
                }
            });
        })
        .await
    );
    insta::assert_snapshot!(
        "missing",
        checked(|mas| {
            edit(mas, "account = \"microglia\"", "account = \"nobody\"");
        })
        .await
    );
}

#[tokio::test]
async fn a_mas_without_personal_sessions_is_too_old() {
    insta::assert_snapshot!(
        checked(|mas| {
            mas.homeserver.world(|world| world.auth_service.version = "v1.4.2".to_owned());
        })
        .await
    );
}

#[tokio::test]
async fn the_homeserver_in_place_of_mas_is_recognized() {
    insta::assert_snapshot!(
        checked(|mas| edit(mas, &mas.internal.url(), &mas.homeserver.url())).await
    );
}

#[tokio::test]
async fn a_mas_of_another_server_name_is_wrong() {
    let online = checked(|mas| {
        let body = serde_json::json!({"server_name": "other.test", "password_login_enabled": true});
        let body = body.to_string();
        let other = Trouble::Answer { status: 200, headers: vec![], body };
        mas.internal.fault(Fault::new("GET", "/api/admin/v1/site-config", other).always());
    });
    let online = online.await;
    let line = online.lines().find(|line| line.contains("server name")).unwrap();
    insta::assert_snapshot!(line, @"main: server name of MAS: NO: other.test, but that of Synapse is fake.test: correct `homeserver` of matrix in the configuration of MAS, or `url` and `admin_url`");
}
