//! Bodies that are asked for again: only with the server's word that they are the same.

use super::*;

/// Gives `body` the tag `tag` says at the time; hands out what each request had in `If-None-Match`.
async fn tagging(
    tag: Arc<std::sync::Mutex<&'static str>>,
) -> (u16, mpsc::UnboundedReceiver<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (requests, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = socket.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
            let asked = request
                .lines()
                .find_map(|line| line.strip_prefix("if-none-match: "));
            let _ = requests.send(asked.map(str::to_owned));
            let tag = *tag.lock().unwrap();
            let said = if asked == Some(tag) {
                answer(&format!("304 Not Modified\r\nETag: {tag}"), b"")
            } else {
                let head = format!("200 OK\r\nETag: {tag}\r\nContent-Length: {}", tag.len());
                answer(&head, tag.as_bytes())
            };
            let _ = socket.write_all(&said).await;
        }
    });
    (port, received)
}

#[tokio::test]
async fn a_body_is_used_again_only_when_its_server_says_that_it_is_the_same() {
    let tag = Arc::new(std::sync::Mutex::new("\"one\""));
    let (port, mut asked) = tagging(Arc::clone(&tag)).await;
    let settings = MediaSettings {
        max_kept_bytes: 1 << 20,
        ..open(port)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let url = Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap();
    let mut fetch = async |owner| {
        let fetched = fetcher.fetch(&url, owner).await.unwrap();
        let body = String::from_utf8(fetched.body.to_vec()).unwrap();
        (body, fetched.was_kept, asked.recv().await.unwrap())
    };
    let one = || "\"one\"".to_owned();
    assert_eq!(fetch(1).await, (one(), false, None));
    assert_eq!(fetch(1).await, (one(), true, Some(one())));
    // Another key's body is not used, nor is it told that there is one.
    assert_eq!(fetch(2).await, (one(), false, None));
    *tag.lock().unwrap() = "\"two\"";
    let two = || "\"two\"".to_owned();
    assert_eq!(fetch(1).await, (two(), false, Some(one())));
    assert_eq!(fetch(1).await, (two(), true, Some(two())));
    *tag.lock().unwrap() = "w/\"three\"";
    let three = || "w/\"three\"".to_owned();
    assert_eq!(fetch(1).await, (three(), false, Some(two())));
    assert_eq!(fetch(1).await, (three(), false, None));
}

#[tokio::test]
async fn nothing_is_kept_by_default() {
    let tag = Arc::new(std::sync::Mutex::new("\"one\""));
    let (port, mut asked) = tagging(tag).await;
    let fetcher = Fetcher::new(&open(port)).unwrap();
    let url = Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap();
    for _ in 0..2 {
        assert!(!fetcher.fetch(&url, 1).await.unwrap().was_kept);
        assert_eq!(asked.recv().await, Some(None));
    }
}
