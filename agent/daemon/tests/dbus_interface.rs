// SPDX-License-Identifier: Apache-2.0
//! The interface on the bus is the one in `org.clusteros.Agent1.xml`: others build on that file.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::os::unix::net::UnixStream;

use cluster_agent::bus::{Agent, NAME, PATH, Request, View};
use tokio::sync::mpsc;
use zbus::{Connection, connection};

/// The object on one end of a socket pair, a caller on the other: no bus daemon is needed.
async fn connected(agent: Agent) -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guid = "0123456789abcdef0123456789abcdef";
    let server = connection::Builder::unix_stream(ours).server(guid).p2p().serve_at(PATH, agent);
    let client = connection::Builder::unix_stream(theirs).p2p();
    let (server, client) = tokio::join!(server.build(), client.build());
    (server.unwrap(), client.unwrap())
}

/// The `<interface>` element of one name, without comments and indentation.
fn interface(xml: &str, name: &str) -> Vec<String> {
    let start = xml.find(&format!("<interface name=\"{name}\">")).expect("the interface is there");
    let end = xml[start..].find("</interface>").expect("and ends") + start;
    let mut element = xml[start..end].to_owned();
    while let Some(comment) = element.find("<!--") {
        let length = element[comment..].find("-->").expect("a comment ends") + "-->".len();
        element.replace_range(comment..comment + length, "");
    }
    element.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_running_object_has_the_interface_of_the_file() {
    let (requests, _incoming) = mpsc::channel(1);
    let (_server, client) = connected(Agent::new(requests, "1.2.3".to_owned())).await;
    let reply = client
        .call_method(None::<&str>, PATH, Some("org.freedesktop.DBus.Introspectable"), "Introspect", &())
        .await
        .unwrap();
    let running: String = reply.body().deserialize().unwrap();
    let file = include_str!("../org.clusteros.Agent1.xml");
    assert_eq!(interface(&running, NAME), interface(file, NAME), "the running object:\n{running}");
}

#[tokio::test]
async fn a_question_goes_to_the_loop_and_its_answer_back() {
    let (requests, mut incoming) = mpsc::channel(1);
    let (_server, client) = connected(Agent::new(requests, "1.2.3".to_owned())).await;
    let call = client.call_method(None::<&str>, PATH, Some(NAME), "Members", &());
    let answer = async {
        let Some(Request::View(View::Members, reply)) = incoming.recv().await else {
            panic!("another request")
        };
        reply.send(Ok("[]".to_owned())).unwrap();
    };
    let (reply, ()) = tokio::join!(call, answer);
    assert_eq!(reply.unwrap().body().deserialize::<String>().unwrap(), "[]");
}

#[tokio::test]
async fn whoever_cannot_show_to_be_root_changes_nothing() {
    let (requests, mut incoming) = mpsc::channel(1);
    let (_server, client) = connected(Agent::new(requests, "1.2.3".to_owned())).await;
    for method in ["Leave", "Join", "Reload"] {
        // A peer without a bus in between has no name whose user could be asked for.
        let error = client.call_method(None::<&str>, PATH, Some(NAME), method, &()).await.unwrap_err();
        assert!(error.to_string().contains("only root"), "{method}: {error}");
    }
    let releases = vec![("0.1.1", "0011223344556677")];
    let error = client.call_method(None::<&str>, PATH, Some(NAME), "SetReleases", &(releases,)).await;
    assert!(error.unwrap_err().to_string().contains("only root"));
    assert!(incoming.try_recv().is_err());
}
