package pgproxy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/pgproxy"
)

// patience turns a hang into a failure that says what was waited for.
const patience = 30 * time.Second

// A wire is a client and a server with the proxy between them. Both are the test.
type wire struct {
	testing.TB
	*pgproxy.Proxy
	servers chan net.Conn
}

func newWire(t testing.TB) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	w := &wire{t, listen(t, "tcp", listener.Addr().String()), make(chan net.Conn, 10)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			w.servers <- conn
		}
	}()
	return w
}

// listen is pgproxy.New, but that a Close which does not return is a failure.
func listen(t testing.TB, network, address string) *pgproxy.Proxy {
	t.Helper()
	proxy, err := pgproxy.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, proxy) })
	return proxy
}

// dial connects without a first message.
func (w *wire) dial() (client, server net.Conn) {
	w.Helper()
	client, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", w.Port()))
	if err != nil {
		w.Fatal(err)
	}
	select {
	case server = <-w.servers:
	case <-time.After(patience):
		w.Fatal("the proxy does not connect to the server")
	}
	for _, conn := range []net.Conn{client, server} {
		conn.SetDeadline(time.Now().Add(patience))
		w.Cleanup(func() { conn.Close() })
	}
	return client, server
}

var startup = first(196608, "user\x00a\x00\x00")

// connect is dial with the message by which a session begins.
func (w *wire) connect() (client, server net.Conn) {
	w.Helper()
	client, server = w.dial()
	w.send(client, startup)
	w.gets(server, startup)
	return client, server
}

// first is a message without a type.
func first(code uint32, rest string) []byte {
	head := binary.BigEndian.AppendUint32(nil, uint32(8+len(rest)))
	return append(binary.BigEndian.AppendUint32(head, code), rest...)
}

func message(kind byte, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

func parse(name, sql string) []byte   { return message('P', name+"\x00"+sql+"\x00\x00\x00") }
func bind(portal, name string) []byte { return message('B', portal+"\x00"+name+"\x00\x00\x00\x00\x00") }
func query(sql string) []byte         { return message('Q', sql+"\x00") }
func tag(text string) []byte          { return message('C', text+"\x00") }

func (w *wire) send(conn net.Conn, data []byte) {
	w.Helper()
	if _, err := conn.Write(data); err != nil {
		w.Fatalf("sending %.20q: %v", data, err)
	}
}

func (w *wire) gets(conn net.Conn, want []byte) {
	w.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		w.Fatalf("got %.40q, %v, want %.40q", got, err, want)
	}
}

// ends checks that nothing more arrives and the connection is cut.
func (w *wire) ends(conn net.Conn) {
	w.Helper()
	rest, err := io.ReadAll(conn)
	if timeout := net.Error(nil); len(rest) > 0 || errors.As(err, &timeout) && timeout.Timeout() {
		w.Errorf("not cut: %.40q, %v", rest, err)
	}
}

// goesOn checks that what the server says is still taken: more than the system keeps
// for a connection that nobody reads.
func (w *wire) goesOn(server net.Conn) {
	w.Helper()
	lots := bytes.Repeat(message('D', string(make([]byte, 1<<16))), 256)
	if _, err := server.Write(lots); err != nil {
		w.Errorf("the server is disturbed: %v", err)
	}
}

// on gives a verdict on the messages of that type and direction.
func on(fromServer bool, kind byte, verdict pgproxy.Verdict) pgproxy.Rule {
	return func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer == fromServer && m.Type == kind {
			return verdict
		}
		return pgproxy.Pass
	}
}

func TestMessagesArriveAsTheyWereSent(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	large := query(string(bytes.Repeat([]byte("large "), 1<<19)))
	for _, data := range [][]byte{
		message('S', ""),
		bytes.Join([][]byte{parse("", "a"), bind("", ""), message('E', "\x00\x00\x00\x00\x00"), message('S', "")}, nil),
		query("\xff\x00\x01"),
		large,
	} {
		for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
			sent := make(chan error, 1)
			go func() {
				_, err := way[0].Write(data)
				sent <- err
			}()
			w.gets(way[1], data)
			if err := <-sent; err != nil {
				t.Error(err)
			}
		}
	}
	for _, b := range message('S', "split") {
		w.send(client, []byte{b})
	}
	w.gets(server, message('S', "split"))
}

func TestEncryptionIsDeclined(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.dial()
	for _, code := range []uint32{80877103, 80877104} {
		w.send(client, first(code, ""))
		w.gets(client, []byte("N"))
	}
	w.send(client, startup)
	w.gets(server, startup)
}

func TestDroppedMessageIsLostAndBothSidesAreCut(t *testing.T) {
	t.Parallel()
	for _, fromServer := range []bool{false, true} {
		w := newWire(t)
		w.SetRule(on(fromServer, 'C', pgproxy.Drop))
		client, server := w.connect()
		from, to := client, server
		if fromServer {
			from, to = server, client
		}
		w.send(from, append(message('S', "before"), tag("lost")...))
		w.gets(to, message('S', "before"))
		w.ends(to)
		w.ends(from)
	}
}

func TestMessageThatPassesBeforeACutArrives(t *testing.T) {
	t.Parallel()
	for _, fromServer := range []bool{false, true} {
		w := newWire(t)
		w.SetRule(on(fromServer, 'C', pgproxy.PassAndCut))
		client, server := w.connect()
		from, to := client, server
		if fromServer {
			from, to = server, client
		}
		w.send(from, tag("last"))
		w.gets(to, tag("last"))
		w.ends(to)
		w.ends(from)
	}
}

func TestServerOfAClientThatIsCutGoesOnUndisturbed(t *testing.T) {
	t.Parallel()
	for _, fromServer := range []bool{false, true} {
		w := newWire(t)
		w.SetRule(on(fromServer, 'C', pgproxy.CutClient))
		client, server := w.connect()
		if fromServer {
			w.send(server, tag("lost"))
		} else {
			w.send(client, tag("passes"))
			w.gets(server, tag("passes"))
		}
		w.ends(client)
		w.goesOn(server)
		w.CutAll()
		w.ends(server)
	}
}

// A client that hangs up by itself is not cut: its server hears of it, as without a proxy.
func TestEndOfOneSideIsTheEndOfTheOther(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	client.Close()
	w.ends(server)
	client, server = w.connect()
	server.Close()
	w.ends(client)
}

func TestRuleSeesStatementsByTheirText(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	var mu sync.Mutex
	var seen []pgproxy.Message
	w.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, m)
		return pgproxy.Pass
	})
	client, server := w.connect()
	other, otherServer := w.connect() // has statements of its own
	for _, m := range [][]byte{
		parse("", "select 1"), bind("", ""), parse("s", "select 2"), bind("portal", "s"), bind("", ""),
		parse("", "select 3"), bind("", ""), bind("", "none"), query("begin"), message('C', "Ss\x00"), message('S', ""),
	} {
		w.send(client, m)
		w.gets(server, m)
	}
	for _, m := range [][]byte{tag("INSERT 0 1"), message('S', "name\x00value\x00"), query("no statement"), message('Z', "I")} {
		w.send(server, m)
		w.gets(client, m)
	}
	w.send(other, bind("", "s"))
	w.gets(otherServer, bind("", "s"))
	want := []pgproxy.Message{
		{Type: 'P', SQL: "select 1"}, {Type: 'B', SQL: "select 1"}, {Type: 'P', SQL: "select 2"}, {Type: 'B', SQL: "select 2"}, {Type: 'B', SQL: "select 1"},
		{Type: 'P', SQL: "select 3"}, {Type: 'B', SQL: "select 3"}, {Type: 'B'}, {Type: 'Q', SQL: "begin"}, {Type: 'C'}, {Type: 'S'},
		{FromServer: true, Type: 'C', Tag: "INSERT 0 1"}, {FromServer: true, Type: 'S'}, {FromServer: true, Type: 'Q'}, {FromServer: true, Type: 'Z'},
		{Type: 'B'},
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("seen\n%+v, want\n%+v", seen, want)
	}
}

func TestSyncAndQueryOfClientsAreRoundTrips(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	for range 2 {
		client, server := w.connect()
		for _, m := range [][]byte{parse("", "a"), message('S', ""), query("a"), bind("", ""), message('S', "")} {
			w.send(client, m)
			w.gets(server, m)
		}
		for _, m := range [][]byte{message('S', "name\x00value\x00"), query("a")} {
			w.send(server, m)
			w.gets(client, m)
		}
	}
	if n := w.RoundTrips(); n != 6 {
		t.Errorf("%d round trips, want 6", n)
	}
}

func TestRuleIsReplacedForOpenConnections(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	w.SetRule(on(false, 'X', pgproxy.Drop))
	w.SetRule(nil)
	w.send(client, message('X', ""))
	w.gets(server, message('X', ""))
	w.SetRule(on(false, 'X', pgproxy.Drop))
	w.send(client, message('X', ""))
	w.ends(server)
}

func TestCancelRequestPassesOrIsDroppedByTheRule(t *testing.T) {
	t.Parallel()
	cancel := first(80877102, "pid and secret")
	w := newWire(t)
	for _, verdict := range []pgproxy.Verdict{pgproxy.Pass, pgproxy.Drop, pgproxy.PassAndCut, pgproxy.CutClient} {
		asked := make(chan pgproxy.Message, 1)
		w.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			asked <- m
			return verdict
		})
		client, server := w.dial()
		w.send(client, cancel)
		if m := <-asked; m != (pgproxy.Message{Type: pgproxy.CancelRequest}) {
			t.Errorf("the rule got %+v", m)
		}
		if verdict == pgproxy.Pass {
			w.gets(server, cancel)
			client.Close()
		}
		w.ends(server)
	}
}

func TestRuleIsNotAskedAboutTheStartOfASession(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		t.Errorf("asked about %+v", m)
		return pgproxy.Drop
	})
	w.connect()
}

func TestRuleThatBlocksDelaysItsDirectionOnly(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	blocked, release := make(chan bool), make(chan bool)
	w.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.SQL == "slow" {
			close(blocked)
			<-release
		}
		return pgproxy.Pass
	})
	client, server := w.connect()
	w.send(client, append(query("slow"), query("behind it")...))
	select {
	case <-blocked:
	case <-time.After(patience):
		t.Fatal("the rule was not asked")
	}
	w.send(server, tag("meanwhile"))
	w.gets(client, tag("meanwhile"))
	w.send(server, tag("and again"))
	w.gets(client, tag("and again"))
	if n := w.RoundTrips(); n != 1 {
		t.Errorf("%d round trips have begun, want the one that waits", n)
	}
	close(release)
	w.gets(server, append(query("slow"), query("behind it")...))
}

func TestAllConnectionsAreCutAndNewOnesPass(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	other, otherServer := w.connect()
	w.CutAll()
	for _, conn := range []net.Conn{client, server, other, otherServer} {
		w.ends(conn)
	}
	client, server = w.connect()
	w.send(client, query("a"))
	w.gets(server, query("a"))
}

func TestCloseEndsOpenConnectionsAndTakesNoNewOne(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	begun, begunServer := w.dial() // has not said yet what it wants
	closes(t, w.Proxy)
	for _, conn := range []net.Conn{client, server, begun, begunServer} {
		w.ends(conn)
	}
	if conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", w.Port())); err == nil {
		conn.Close()
		t.Error("a new connection was taken")
	}
	closes(t, w.Proxy) // once more, as when its test ends
}

func closes(t testing.TB, proxy *pgproxy.Proxy) {
	t.Helper()
	closed := make(chan bool)
	go func() {
		proxy.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close does not return")
	}
}

// Close must find, or keep away, a connection that is accepted at the same moment.
func TestCloseWaitsForNoConnectionThatComesAtTheSameMoment(t *testing.T) {
	t.Parallel()
	for range 200 {
		w := newWire(t)
		conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", w.Port()))
		if err != nil {
			t.Fatal(err)
		}
		closes(t, w.Proxy)
		conn.Close()
	}
}

func TestMessageOfABadLengthEndsTheConnection(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	for length := range uint32(4) {
		bad := binary.BigEndian.AppendUint32([]byte{'Q'}, length)
		client, server := w.connect()
		w.send(client, bad)
		w.ends(server)
		w.ends(client)
		client, server = w.connect()
		w.send(server, bad)
		w.ends(client)
	}
	for _, length := range []uint32{0, 7, 10_001, 1<<32 - 1} {
		client, server := w.dial()
		w.send(client, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, length), 196608))
		w.ends(server)
		w.ends(client)
	}
}

func TestMessageThatBreaksOffDoesNotArrive(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	whole := query("half of it is lost")
	w.send(client, append(query("whole"), whole[:len(whole)-1]...))
	client.Close()
	w.gets(server, query("whole"))
	w.ends(server)
}

func TestClientOfAServerThatIsNotThereIsCut(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	w := &wire{TB: t, Proxy: listen(t, "tcp", listener.Addr().String())}
	for range 2 { // and the proxy goes on
		client, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", w.Port()))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		client.SetDeadline(time.Now().Add(patience))
		w.ends(client)
	}
}
