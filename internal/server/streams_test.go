package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
)

// A fragile client keeps its connections, to break them.
type fragile struct {
	*http.Client
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func newFragile(t *testing.T) *fragile {
	f := &fragile{Client: httpClient(t, true)}
	f.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		f.mu.Lock()
		defer f.mu.Unlock()
		if err == nil {
			f.conns = append(f.conns, c)
		}
		return c, err
	}
	return f
}

// vanish breaks all connections.
func (f *fragile) vanish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
}

// What a client has opened ends when the client vanishes: watches, subscriptions, a list
// of entries and a query whose rows it has not read.
func TestStreamsThatVanish(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0)})
	url := "http://" + address
	b, err := kv.New[string](c.Node(0), "b")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := b.Put(testrun.Context(t), fmt.Sprint(i), strings.Repeat("x", 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	ctx := testrun.Context(t)
	client := newFragile(t)
	keys, channels := hiqlitev1connect.NewKVClient(client, url), hiqlitev1connect.NewPubSubClient(client, url)
	watch, err := keys.Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Bucket: "b", Prefix: true}))
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	list, err := hiqlitev1connect.NewShardsClient(client, url).Entries(ctx, connect.NewRequest(&apiv1.ListRequest{Bucket: "b"}))
	if err != nil || !list.Receive() {
		t.Fatal(err, list.Err())
	}
	listen, err := channels.Listen(ctx, connect.NewRequest(&apiv1.ListenRequest{Channel: "c"}))
	if err != nil || !listen.Receive() {
		t.Fatal(err, listen.Err())
	}
	query := openRawSession(t, ctx, client.Client, address)
	const endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"
	if err := query.send(&apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Query{Query: &apiv1.Statement{Sql: endless}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := query.receive(); err != nil {
		t.Fatal(err)
	}
	if n := s.Counters(); n.Streams != 4 || n.Sessions != 1 || n.Conns != 1 {
		t.Errorf("before: %+v", n)
	}
	client.vanish()
	testrun.WaitFor(t, "the server to free everything", func() bool {
		n := s.Counters()
		return n.Streams == 0 && n.Sessions == 0 && n.Conns == 0
	})
	for _, err := range []error{watch.Close(), list.Close(), listen.Close(), query.CloseRequest()} {
		_ = err // the connection is broken
	}
}

// A relay passes bytes on between clients and a server until it is frozen: then it passes
// on nothing and keeps all connections, as a network that was cut does.
type relay struct {
	address string
	frozen  chan struct{} // closed when it is frozen
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr().String(), frozen: make(chan struct{})}
	end := make(chan struct{})
	var work sync.WaitGroup
	pass := func(from, to net.Conn) {
		defer from.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if err != nil {
				to.Close()
				return
			}
			select {
			case <-r.frozen:
				<-end
				return
			default:
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
	}
	work.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			onward, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			work.Go(func() { pass(from, onward) })
			work.Go(func() { pass(onward, from) })
		}
	})
	t.Cleanup(func() { l.Close(); close(end); work.Wait() })
	return r
}

// A client that vanishes without a word, since its machine or the network is lost, keeps
// a transaction and a watch open for some seconds only.
func TestSilentClients(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0)})
	mustExec(t, c.DB(0), "CREATE TABLE t(n INT)")
	r := newRelay(t, address)
	ctx, cancel := context.WithCancel(testrun.Context(t))
	defer cancel()
	client := httpClient(t, true)
	watch, err := hiqlitev1connect.NewKVClient(client, "http://"+r.address).Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Bucket: "b", Prefix: true}))
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	defer watch.Close()
	remote, err := hiqlite.Dial(ctx, hiqlite.RemoteConfig{Addresses: []string{r.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	tx, err := remote.DB().BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	close(r.frozen)
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(2)") // waits for the transaction to be rolled back
	testrun.WaitFor(t, "the server to free everything", func() bool {
		n := s.Counters()
		return n.Streams == 0 && n.Sessions == 0
	})
	if err := tx.Commit(); !errors.Is(err, hiqlite.ErrTxExpired) {
		t.Errorf("the commit: %v", err)
	}
	if got := value[string](t, c.DB(0), "SELECT group_concat(n) FROM t"); got != "2" {
		t.Errorf("the rows are %s", got)
	}
}

// A client that opens a watch and does not read it holds up no writer and takes bounded
// memory. When it reads on, it learns that it has missed events.
func TestSlowWatcher(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	_, address := serve(t, server.Config{Backend: c.Node(0)})
	ctx := testrun.Context(t)
	b, err := kv.New[string](c.Node(0), "b")
	if err != nil {
		t.Fatal(err)
	}
	watch, err := hiqlitev1connect.NewKVClient(httpClient(t, true), "http://"+address).Watch(ctx, connect.NewRequest(&apiv1.WatchRequest{Bucket: "b", Prefix: true}))
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	defer watch.Close()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	value := strings.Repeat("x", 256<<10)
	for range 400 { // 100 MiB; a watcher keeps at most 16
		if err := b.Put(ctx, "k", value); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	events := 0
	for watch.Receive() {
		events++
	}
	if err := watch.Err(); err == nil || !strings.Contains(err.Error(), "lagged") || events == 0 {
		t.Errorf("after %d events: %v", events, err)
	}
}

// A driver whose connection was upgraded, and that reads no answers, holds up nobody and
// takes bounded memory.
func TestSlowReaderOfAStream(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0)})
	mustExec(t, c.DB(0), "CREATE TABLE t(n INT)")
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	session := openStream(t, address)
	const sessions, queries = 64, 10
	const endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i, 'some text of each row' FROM n"
	for id := uint64(1); id <= sessions; id++ {
		requests := []*apiv1.SessionRequest{{Session: id, Id: 1, Request: &apiv1.SessionRequest_Open{Open: &apiv1.Open{}}}}
		for q := range uint64(queries) {
			requests = append(requests, &apiv1.SessionRequest{Session: id, Id: 2 + q, Request: &apiv1.SessionRequest_Query{Query: &apiv1.Statement{Sql: endless}}})
		}
		session.send(requests...)
	}
	testrun.WaitFor(t, "the sessions to be open", func() bool { return s.Counters().Sessions == sessions })
	for range 20 {
		mustExec(t, c.DB(0), "INSERT INTO t VALUES(1)")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	session.conn.Close()
	testrun.WaitFor(t, "the server to free everything", func() bool {
		n := s.Counters()
		return n.Streams == 0 && n.Sessions == 0 && n.Conns == 0
	})
}

// Requests that are too large are refused, also if they do not say how large they are or
// belong to a stream, and the others go on.
func TestLargeRequests(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxBody: 1 << 20}})
	big := `{"statement":{"sql":"SELECT '` + strings.Repeat("x", 2<<20) + `'"}}`
	r, err := http.NewRequestWithContext(testrun.Context(t), "POST", "http://"+address+query, io.MultiReader(strings.NewReader(big))) // its length is not known
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := httpClient(t, false).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	if response.StatusCode != 429 || !strings.Contains(string(text), "larger than") {
		t.Errorf("without a length: %d %s", response.StatusCode, text)
	}
	remote, err := hiqlite.Dial(testrun.Context(t), hiqlite.RemoteConfig{Addresses: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	for _, text := range []string{"SELECT ?", "SELECT length(?)", "CREATE TABLE IF NOT EXISTS t AS SELECT ? AS x"} {
		if _, err = remote.DB().ExecContext(testrun.Context(t), text, strings.Repeat("x", 2<<20)); !errors.Is(err, hiqlite.ErrTooLarge) {
			t.Errorf("%s: %v", text, err)
		}
	}
	raw := openRawSession(t, testrun.Context(t), httpClient(t, true), address)
	_ = raw.send(&apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{Sql: strings.Repeat("x", 2<<20)}}})
	if _, err := raw.receive(); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a message of a stream: %v", err)
	}
	_ = raw.CloseRequest()
	if got := value[int](t, remote.DB(), "SELECT length(?)", strings.Repeat("x", 1<<19)); got != 1<<19 {
		t.Errorf("then: %d", got)
	}
	if n := s.Counters().TooLarge; n < 2 {
		t.Errorf("the server has counted %d", n)
	}
}

// Many idle clients with connections of their own cost little, one more is refused, and
// all is freed when they vanish.
func TestIdleConnections(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	clients := testrun.Rounds(200, 8_000) // each takes two files of this process, which may have 20,000
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxConns: clients, IdleSession: time.Hour}})
	ctx := testrun.Context(t)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var all []*fragile
	for i := range clients {
		f := newFragile(t)
		if i%2 == 0 {
			openRawSession(t, ctx, f.Client, address)
		} else { // as a driver does
			session := openStream(t, address)
			session.send(opening)
			if _, err := session.receive(); err != nil {
				t.Fatal(err)
			}
			f.conns = append(f.conns, session.conn)
		}
		all = append(all, f)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := int64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse) / int64(clients); each > 250<<10 {
		t.Errorf("an idle client, with its server, takes %d KiB", each>>10)
	}
	if n := s.Counters(); n.Sessions != clients || n.Conns != clients {
		t.Errorf("there are %+v", n)
	}
	more := newRawSession(ctx, httpClient(t, true), address)
	_ = more.send(opening)
	if _, err := more.receive(); err == nil {
		t.Error("one more connection was accepted")
	}
	_ = more.CloseRequest()
	if n := s.Counters().RefusedConns; n == 0 {
		t.Error("the server has not counted the connection that it refused")
	}
	for _, f := range all {
		f.vanish()
	}
	testrun.WaitFor(t, "the server to free everything", func() bool {
		n := s.Counters()
		return n.Streams == 0 && n.Sessions == 0 && n.Conns == 0
	})
}

// A client finds the database although its list of nodes has strangers: a port where
// nobody listens, a server of something else, one with TLS, and one that is silent.
func TestStrangersAmongTheNodes(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	_, address := serve(t, server.Config{Backend: c.Node(0)})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	strangers := map[string]string{
		"nobody":             closed.Addr().String(),
		"a server of HTTP/1": foreign(t, nil, "HTTP/1.1 404 Not Found\r\n\r\n"),
		"a server with TLS":  foreign(t, nil, "\x15\x03\x03\x00\x02\x02\x0a"),
		"a silent server":    silent.Addr().String(),
	}
	for name, stranger := range strangers {
		remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{stranger, address}})
		if err != nil {
			t.Fatal(err)
		}
		if got := value[int](t, remote.DB(), "SELECT 7"); got != 7 {
			t.Errorf("%s: %d", name, got)
		}
		remote.Close()
	}
	const secret = "the secret of another cluster"
	_, other := serve(t, server.Config{Backend: c.Node(0), Secret: secret})
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{other, address}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	if _, err := remote.DB().ExecContext(testrun.Context(t), "SELECT 1"); !errors.Is(err, hiqlite.ErrUnauthorized) || !strings.Contains(err.Error(), other) {
		t.Errorf("a server with another secret: %v, want one that names %s", err, other)
	}
}
