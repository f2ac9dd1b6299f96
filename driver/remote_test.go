package driver

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestRemoteDSN(t *testing.T) {
	cfg, err := parseRemote("hiqlite://127.0.0.1:8100, 127.0.0.1:8101/?timeout=3s&reconnect_timeout=1s&consistency=linearizable&_txlock=deferred&_pragma=cache_size(5)&_fk=off")
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Addresses) != 2 || cfg.Addresses[1] != "127.0.0.1:8101" || cfg.Timeout != 3*time.Second || cfg.ReconnectTimeout != time.Second {
		t.Errorf("it is %+v", cfg)
	}
	if c := cfg.Conn; c.Consistency != hiqlite.Linearizable || !c.Deferred || len(c.Pragmas) != 2 {
		t.Errorf("its connections are %+v", c)
	}
	for name, want := range map[string]string{
		"hiqlite://":                                     "Addresses is empty",
		"hiqlite://a":                                    "host:port",
		"hiqlite://10.0.0.1:8100":                        "secret_file",
		"hiqlite://127.0.0.1:1?node_id=1":                "concerns a node",
		"hiqlite://127.0.0.1:1?secret_fil=x":             "secret_file",
		"hiqlite://127.0.0.1:1?timeout=x":                "not a duration",
		"hiqlite://127.0.0.1:1?insecure=":                "value is empty",
		"hiqlite://127.0.0.1:1?_timezone=Mars":           "Mars",
		"hiqlite://127.0.0.1:1?insecure=1&tls_ca_file=x": "contradicts",
	} {
		if _, err := parseRemote(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestOpenRemote(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	db, err := sql.Open("hiqlite", "hiqlite://"+c.Serve(0))
	if err != nil {
		t.Fatal(err)
	}
	ctx := testrun.Context(t)
	var n int
	if err := db.QueryRowContext(ctx, "SELECT 7").Scan(&n); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	client, err := hiqlite.From(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := client.Status(ctx); err != nil || status.NodeID != 1 {
		t.Errorf("%+v, %v", status, err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if err := client.Ready(ctx); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
