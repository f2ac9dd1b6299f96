package server_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// askUpgrade connects to a server and asks for an upgrade. It returns the connection and
// the status of the answer.
func askUpgrade(t testing.TB, address, header string) (net.Conn, *bufio.Reader, int) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write([]byte("GET " + hiqlitev1connect.DatabaseSessionProcedure + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n")); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, in, answer.StatusCode
}

const upgradeHeader = "Connection: Upgrade\r\nUpgrade: " + protocol.UpgradeName + "\r\n"

// A streamSession is a session without HTTP and without the driver.
type streamSession struct {
	t      testing.TB
	conn   net.Conn
	stream *protocol.Stream
}

func openStream(t testing.TB, address string) streamSession {
	t.Helper()
	conn, in, code := askUpgrade(t, address, upgradeHeader)
	if code != http.StatusSwitchingProtocols {
		t.Fatalf("the upgrade: %d", code)
	}
	return streamSession{t, conn, protocol.NewStream(conn, in, protocol.StreamLimits{MaxFrame: 1 << 20, PingAfter: time.Minute, PingTimeout: time.Minute, WriteTimeout: time.Minute})}
}

// send sends requests in one frame.
func (s streamSession) send(requests ...*apiv1.SessionRequest) {
	s.t.Helper()
	frame := make([]byte, protocol.HeadBytes)
	for _, r := range requests {
		var err error
		if frame, err = protocol.AppendRequest(frame, r); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.stream.Send(frame); err != nil {
		s.t.Fatal(err)
	}
}

// receive returns the next answers.
func (s streamSession) receive() (answers []*apiv1.SessionResponse, err error) {
	b, err := s.stream.Receive()
	if err != nil {
		return nil, err
	}
	var d protocol.Decoder
	return answers, d.Responses(b, func(r *apiv1.SessionResponse) { answers = append(answers, r) })
}

// Requests to upgrade a connection that cannot be, or by strangers, are refused.
func TestRefusedUpgrades(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Secret: "a secret of the tests"})
	authorized := "Authorization: Bearer a secret of the tests\r\n"
	for name, x := range map[string]struct {
		header string
		code   int
	}{
		"no secret":        {upgradeHeader, 401},
		"a wrong secret":   {upgradeHeader + "Authorization: Bearer wrong\r\n", 401},
		"no upgrade":       {authorized, 426},
		"another protocol": {authorized + "Connection: Upgrade\r\nUpgrade: websocket\r\n", 426},
		"an upgrade":       {authorized + upgradeHeader, 101},
	} {
		if _, _, code := askUpgrade(t, address, x.header); code != x.code {
			t.Errorf("%s: %d", name, code)
		}
	}
	if n := s.Counters().Unauthorized; n != 2 {
		t.Errorf("the server has counted %d", n)
	}
}

// A client that does not keep to the protocol is told so, and the server goes on.
func TestBadStreams(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxBody: 1 << 20}})
	for name, x := range map[string]struct {
		input []byte
		want  string
	}{
		"too large":     {[]byte{0, 0x7f, 0, 0, 0}, "larger than"},
		"no frame":      {[]byte("GET / HTTP/1.1\r\n"), "kind 71"},
		"no message":    {[]byte{0, 0, 0, 0, 1, 0xff}, "malformed"},
		"no Open":       {frameOf(t, &apiv1.SessionRequest{Session: 1, Id: 1}), "first request"},
		"bad arguments": {frameOf(t, opening, &apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{Sql: "SELECT ?", Cells: []byte{9}}}}), "malformed"},
	} {
		session := openStream(t, address)
		if _, err := session.conn.Write(x.input); err != nil {
			t.Fatal(err)
		}
		if err := firstError(session); !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
		session.conn.Close()
	}
	if n := s.Counters().TooLarge; n != 1 {
		t.Errorf("the server has counted %d that are too large", n)
	}
	testrun.WaitFor(t, "the connections to end", func() bool { return s.Counters().Conns == 0 && s.Counters().Sessions == 0 })
}

func frameOf(t testing.TB, requests ...*apiv1.SessionRequest) []byte {
	frame := make([]byte, protocol.HeadBytes)
	for _, r := range requests {
		var err error
		if frame, err = protocol.AppendRequest(frame, r); err != nil {
			t.Fatal(err)
		}
	}
	size := len(frame) - protocol.HeadBytes
	copy(frame, []byte{0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)})
	return frame
}

// firstError returns the first error of the stream, or of an answer.
func firstError(s streamSession) error {
	for {
		answers, err := s.receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Error != nil {
				return errors.New(a.Error.Message)
			}
		}
	}
}

// When a client vanishes, its transaction is rolled back. Connections without HTTP count
// like others.
func TestStreamThatVanishes(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxConns: 1}})
	mustExec(t, c.DB(0), "CREATE TABLE t(n INT)")
	session := openStream(t, address)
	session.send(opening,
		&apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Begin{Begin: &apiv1.Begin{}}},
		&apiv1.SessionRequest{Id: 3, Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{Sql: "INSERT INTO t VALUES(?)", Cells: protocol.AppendCell(nil, int64(1))}}})
	for answered := 0; answered < 3; {
		answers, err := session.receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range answers {
			if a.Error != nil {
				t.Fatal(a.Error)
			}
			answered++
		}
	}
	if n := s.Counters().Conns; n != 1 {
		t.Errorf("there are %d connections", n)
	}
	second, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("a second connection is served")
	}
	session.conn.Close()
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(2)")
	if got := value[string](t, c.DB(0), "SELECT group_concat(n) FROM t"); got != "2" {
		t.Errorf("the rows are %s", got)
	}
	testrun.WaitFor(t, "the connection to end", func() bool { return s.Counters().Conns == 0 && s.Counters().Sessions == 0 })
}

// The driver has its connections upgraded, with TLS and without.
func TestDriverUpgrades(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	secret, err := hiqlite.NewSecret([]byte("a secret of the tests"))
	if err != nil {
		t.Fatal(err)
	}
	encryption, err := protocol.ServerTLS(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []server.Config{{}, {Secret: secret.Text(), TLS: encryption}} {
		cfg.Backend = c.Node(0)
		s, address := serve(t, cfg)
		client := hiqlite.RemoteConfig{Addresses: []string{address}}
		if cfg.TLS != nil {
			client.Secret = secret
		}
		remote, err := hiqlite.Dial(testrun.Context(t), client)
		if err != nil {
			t.Fatal(err)
		}
		if got := value[int](t, remote.DB(), "SELECT 7"); got != 7 {
			t.Errorf("the query returns %d", got)
		}
		if now := s.Counters(); now.Streams != 1 || now.Sessions != 1 || now.Conns != 2 { // the state of the cluster is asked by HTTP/2
			t.Errorf("with TLS %v, there are %+v", cfg.TLS != nil, now)
		}
		remote.Close()
	}
}

// Behind a proxy that refuses upgrades, the driver uses a stream of the API.
func TestWithoutUpgrades(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, err := server.New(server.Config{Backend: c.Node(0)})
	if err != nil {
		t.Fatal(err)
	}
	var refused, streams atomic.Int64
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Upgrade") != "":
			refused.Add(1)
			http.Error(w, "no upgrades", http.StatusForbidden)
			return
		case r.URL.Path == hiqlitev1connect.DatabaseSessionProcedure:
			streams.Add(1)
		}
		s.Handler().ServeHTTP(w, r)
	}))
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetHTTP1(true)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Start()
	defer front.Close()
	defer s.Close()
	remote, err := hiqlite.Dial(testrun.Context(t), hiqlite.RemoteConfig{Addresses: []string{front.Listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	mustExec(t, remote.DB(), "CREATE TABLE t(a, b)")
	mustExec(t, remote.DB(), "INSERT INTO t VALUES(?, ?)", "text", []byte{0, 1})
	if got := value[string](t, remote.DB(), "SELECT a || hex(b) FROM t"); got != "text0001" {
		t.Errorf("the row is %s", got)
	}
	if refused.Load() != 1 || streams.Load() == 0 {
		t.Errorf("%d upgrades were refused, and %d streams opened", refused.Load(), streams.Load())
	}
}

// A client that sends half a request for an upgrade, or nothing after it, is not waited
// for when the server closes.
func TestCloseWithStreams(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	s, address := serve(t, server.Config{Backend: c.Node(0)})
	silent := openStream(t, address)
	ctx, cancel := context.WithTimeout(testrun.Context(t), 20*time.Millisecond)
	defer cancel()
	open := openStream(t, address)
	open.send(opening, &apiv1.SessionRequest{Id: 2, Request: &apiv1.SessionRequest_Begin{Begin: &apiv1.Begin{}}})
	if _, err := open.receive(); err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown with an open transaction: %v", err)
	}
	for _, x := range []streamSession{silent, open} {
		for {
			if _, err := x.receive(); err != nil {
				break
			}
		}
	}
	testrun.WaitFor(t, "the connections to end", func() bool { return s.Counters().Conns == 0 && s.Counters().Sessions == 0 })
}

// FuzzStreams sends arbitrary bytes after an upgrade. The server must not fail, and must
// serve the next client.
func FuzzStreams(f *testing.F) {
	c := hiqlitetest.NewCluster(f, 1)
	s, address := serve(f, server.Config{Backend: c.Node(0), Limits: server.Limits{MaxTime: time.Second}})
	f.Add(frameOf(f, opening, &apiv1.SessionRequest{Id: 2, TimeoutUs: 1000, Request: &apiv1.SessionRequest_Query{Query: &apiv1.Statement{Sql: "SELECT ?", Cells: protocol.AppendCell(nil, "x")}}}))
	f.Add(bytes.Join([][]byte{{1, 0, 0, 0, 0}, frameOf(f, opening), {3, 0, 0, 0, 0}}, nil))
	f.Add([]byte{0, 0, 0xff, 0, 0, 1})
	f.Fuzz(func(t *testing.T, input []byte) {
		session := openStream(t, address)
		_, _ = session.conn.Write(input) // the server may have closed the connection
		session.conn.(*net.TCPConn).CloseWrite()
		for {
			if _, err := session.receive(); err != nil {
				break
			}
		}
		session.conn.Close()
		testrun.WaitFor(t, "the session to end", func() bool { return s.Counters().Sessions == 0 })
	})
}
