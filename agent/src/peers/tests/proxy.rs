//! A way for packets that can be cut, and led elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub struct Proxy {
    pub address: SocketAddr,
    /// None: it is cut.
    target: Arc<Mutex<Option<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let target = Arc::new(Mutex::new(Some(target)));
        let task = tokio::spawn(pass(front, back, target.clone()));
        Self {
            address,
            target,
            task,
        }
    }

    pub fn cut(&self) {
        *self.target.lock() = None;
    }

    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock() = Some(target);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(front: UdpSocket, back: UdpSocket, target: Arc<Mutex<Option<SocketAddr>>>) {
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut client = None;
    loop {
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut up) => {
                client = Some(from);
                let to = *target.lock();
                if let Some(to) = to {
                    let _ = back.send_to(&up[..length], to).await;
                }
            }
            Ok((length, from)) = back.recv_from(&mut down) => {
                let open = *target.lock() == Some(from);
                if let Some(client) = client.filter(|_| open) {
                    let _ = front.send_to(&down[..length], client).await;
                }
            }
        }
    }
}
