package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check how times are stored and read, and the zone of localtime.

var zones = []*time.Location{
	time.UTC, time.Local, time.FixedZone("", -4*3600), time.FixedZone("UTC+8", 8*3600), time.FixedZone("", 5*3600+1800),
	time.FixedZone("+0545", 5*3600+45*60), time.FixedZone("Pacific Time", -8*3600), mustZone("America/Bogota"), mustZone("Asia/Colombo"),
	mustZone("Asia/Kathmandu"), mustZone("Europe/Berlin"), mustZone("America/Sao_Paulo"), mustZone("Asia/Tehran"), mustZone("Pacific/Kiritimati"),
}

func mustZone(name string) *time.Location {
	zone, err := time.LoadLocation(name)
	if err != nil {
		panic(err)
	}
	return zone
}

// A time of any zone can be stored and is read back as the same moment, in UTC.
func TestTimesOfEveryZone(t *testing.T) {
	t.Parallel()
	moments := []time.Time{
		time.Now(), time.Date(2024, 2, 29, 23, 59, 59, 0, time.UTC), time.Date(2024, 7, 1, 0, 0, 0, 500_000_000, time.UTC),
		time.Date(1969, 12, 31, 23, 59, 59, 999_999_999, time.UTC), time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 30, 1, 2, 3, 1000, time.UTC),
	}
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, dt DATETIME, tz timestamp with time zone, d6 DateTime(6), p3 TIMESTAMP(3), ptz timestamptz)")
		for _, moment := range moments {
			for _, zone := range zones {
				at := moment.In(zone)
				var got [5]time.Time
				err := db.QueryRowContext(testrun.Context(t), "INSERT INTO t(dt,tz,d6,p3,ptz) VALUES(?1,?1,?1,?1,?1) RETURNING dt,tz,d6,p3,ptz", at).Scan(&got[0], &got[1], &got[2], &got[3], &got[4])
				for i := range got {
					if err != nil || !got[i].Equal(at) || got[i].Location() != time.UTC {
						t.Fatalf("%v in %q is read as %v, %v", at, zone, got[i], err)
					}
				}
				// The row is found by the time that was read, and by the one that was written.
				if n := queryValue[int](t, db, "SELECT count(*) FROM t WHERE dt=? AND tz=? AND id=last_insert_rowid()+0*?", got[0], at, 0); n > 1 {
					t.Fatalf("%v finds %d rows", at, n)
				}
				if n := queryValue[int](t, db, "SELECT count(*) FROM t WHERE dt=? AND tz=?", got[0], at); n < 1 {
					t.Fatalf("%v finds no row", at)
				}
			}
		}
		if n := queryValue[int](t, db, "SELECT count(*) FROM t WHERE datetime(dt) IS NULL OR julianday(dt) IS NULL OR strftime('%s', dt) IS NULL OR dt LIKE '%m=%'"); n != 0 {
			t.Errorf("SQLite's date functions cannot read %d of the times", n)
		}
		c.WaitEqual()
	})
}

// Times are stored as texts, whose order is that of the times.
func TestTimesSortAsTexts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(at DATETIME)")
	random := rand.New(rand.NewPCG(1, 2))
	var times []time.Time
	base := time.Date(2024, 3, 31, 0, 59, 59, 0, time.UTC)
	for i := range 400 {
		fraction := []int64{0, 5, 50, 55, 500_000_000, 550_000_000, 555_000_000, 999_999_999, 1, 1000, 100_000_000, random.Int64N(1e9)}[random.IntN(12)]
		at := base.Add(time.Duration(random.IntN(4)-1)*time.Second + time.Duration(fraction)).In(zones[i%len(zones)])
		times = append(times, at)
		mustExec(t, db, "INSERT INTO t VALUES(?)", at)
	}
	slices.SortFunc(times, time.Time.Compare)
	rows, err := db.Query("SELECT at FROM t ORDER BY at")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for i := 0; rows.Next(); i++ {
		var at time.Time
		if err := rows.Scan(&at); err != nil || !at.Equal(times[i]) {
			t.Fatalf("row %d is %v, want %v, %v", i, at, times[i], err)
		}
	}
	for i := 0; i < len(times); i += 17 {
		want := 0
		for _, at := range times {
			if !at.Before(times[i]) {
				want++
			}
		}
		if n := queryValue[int](t, db, "SELECT count(*) FROM t WHERE at>=?", times[i].In(zones[i%len(zones)])); n != want {
			t.Errorf("%d times are not before %v, want %d", n, times[i], want)
		}
	}
}

// In a column of times, texts in all forms that drivers of Go and of other languages
// have stored are read as times.
func TestTimesInOtherFormats(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	at := time.Date(2024, 2, 3, 4, 5, 6, 700_000_000, time.UTC)
	second := at.Truncate(time.Second)
	minute, day := at.Truncate(time.Minute), at.Truncate(24*time.Hour)
	for text, want := range map[string]time.Time{
		"2024-02-03 04:05:06.7 +0000 UTC": at, "2024-02-03 04:05:06.7 +0000 UTC m=+0.123456789": at, "2024-02-03 04:05:06.7 +0000 UTC m=-12.5": at,
		"2024-02-03 05:05:06.7 +0100 CET": at, "2024-02-03 00:05:06.7 -0400 -0400": at, "2024-02-03 09:35:06.7 +0530 +0530 m=+0.78": at, "2024-02-03 09:50:06.7 +0545 +0545": at,
		"2024-02-03 12:05:06.7 +0800 UTC+8": at, "2024-02-02 20:05:06.7 -0800 Pacific Time m=+1.0": at, "2024-02-03 01:05:06.7 -0300 -03": at, "2024-02-03 04:05:06.7 +0000 +0000": at,
		"2024-02-03 04:05:06.7+00:00": at, "2024-02-03T04:05:06.7+00:00": at, "2024-02-03T06:05:06.7+02:00": at, "2024-02-03 06:05:06.7+0200": at, "2024-02-03 06:05:06.7+02": at, "2024-02-03 06:05:06.7 +02:00": at, "2024-02-03 06:05:06.7 +0200": at,
		"2024-02-03T04:05:06.7Z": at, "2024-02-03t04:05:06.7z": at, "2024-02-03 04:05:06.7Z": at, "2024-02-03 04:05:06.7 Z": at, "2024-02-03 04:05:06.7 UTC": at, "2024-02-03 04:05:06.7 GMT": at,
		"2024-02-03 04:05:06.700": at, "2024-02-03 04:05:06.7000000000000": at, "2024-02-03 04:05:06,7": at, " 2024-02-03 04:05:06.7 ": at,
		"2024-02-03 04:05:06": second, "2024-02-03T04:05:06": second, "2024-02-03 04:05": minute, "2024-02-03T04:05": minute, "2024-02-03T04:05Z": minute, "2024-02-03 06:05+02:00": minute,
		"2024-02-03": day, "2024-02-03Z": day, "2024-02-03 4:05:06": second, "0000-01-01 00:00:00": time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC),
		"10000-01-01 00:00:00 +0000 UTC": time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), "-0044-03-15 12:00:00 +0000 UTC": time.Date(-44, 3, 15, 12, 0, 0, 0, time.UTC),
	} {
		var got time.Time
		mustExec(t, db, "CREATE TABLE IF NOT EXISTS f(dt DATETIME)")
		mustExec(t, db, "INSERT INTO f VALUES(?)", text)
		if err := db.QueryRow("SELECT dt FROM f WHERE dt=?", text).Scan(&got); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "no time", "2024-02-30", "2024-13-01", "2024-02-03 24:00:01", "2024-02-03 04:60", "2024-02-03 04:05:61", "04:05:06", "2460000.5", "2024", "2024-02", "2024-02-03 04:05:06.", "2024-02-03x", "2024-02-03 04:05:06+99:99",
		// The result of timediff, and years of five digits.
		"-0023-11-30 12:00:00.000", "12023-11-19 09:52:39.001+00:00", "12023-11-19", "02023-11-19", "-0000-01-06 10:00:00.000", "+0000-01-06 10:00:00.000"} {
		mustExec(t, db, "INSERT INTO f VALUES(?)", text)
		var got any
		if err := db.QueryRow("SELECT dt FROM f WHERE dt=?", text).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if _, is := got.(time.Time); is {
			t.Errorf("%q was read as the time %v", text, got)
		}
	}
}

// ConnConfig.TimeFormat sets how times are written, and ConnConfig.Location in which
// zone they are read.
func TestTimeFormats(t *testing.T) {
	t.Parallel()
	at := time.Date(2024, 2, 3, 4, 5, 6, 700_000_000, time.FixedZone("", -4*3600))
	c := newCluster(t, 1)
	for format, want := range map[string]string{
		"": "2024-02-03 08:05:06.7+00:00", "sqlite": "2024-02-03 04:05:06.7-04:00", "datetime": "2024-02-03 04:05:06",
		"string": "2024-02-03 04:05:06.7 -0400 -0400", "string_no_monotonic": "2024-02-03 04:05:06.7 -0400 -0400",
	} {
		connector, err := c.Node(0).ConnectorWith(hiqlite.ConnConfig{TimeFormat: format})
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(connector)
		if got := queryValue[string](t, db, "SELECT ?", at); got != want {
			t.Errorf("%q: %q, want %q", format, got, want)
		}
		now := queryValue[string](t, db, "SELECT ?", time.Now())
		if strings.Contains(now, "m=") != (format == "string") {
			t.Errorf("%q: %q", format, now)
		}
		db.Close()
	}
	connector, err := c.Node(0).ConnectorWith(hiqlite.ConnConfig{Location: mustZone("Asia/Kathmandu")})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	mustExec(t, db, "CREATE TABLE t(at DATETIME)")
	mustExec(t, db, "INSERT INTO t VALUES(?)", at)
	if got := queryValue[string](t, db, "SELECT CAST(at AS TEXT) FROM t"); got != "2024-02-03 08:05:06.7+00:00" {
		t.Errorf("with a Location the time is written as %s", got)
	}
	if got := queryValue[time.Time](t, db, "SELECT at FROM t"); got.Location().String() != "Asia/Kathmandu" || !got.Equal(at) {
		t.Errorf("with a Location the time is read as %v", got)
	}
}

// A time before year 0 or after year 9999 cannot be written in the default format.
func TestTimesOutsideOfTheDefaultFormat(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	for _, at := range []time.Time{time.Date(-1, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -4*3600))} {
		if _, err := db.Exec("SELECT ?", at); err == nil || !strings.Contains(err.Error(), "year") || !strings.Contains(err.Error(), "_time_format") {
			t.Errorf("%v: %v", at, err)
		}
	}
	for _, at := range []time.Time{{}, time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)} {
		want := strings.TrimSuffix(fmt.Sprint(at.Format("2006-01-02 15:04:05.999999999")), ".") + "+00:00"
		if got := queryValue[string](t, db, "SELECT ?", at); got != want {
			t.Errorf("%v: %q, want %q", at, got, want)
		}
	}
}

// timeOptions returns all combinations of the options of a DSN that concern times.
func timeOptions() (all []string) {
	for _, format := range []string{"", "sqlite", "datetime", "string_no_monotonic"} {
		for _, integer := range []string{"", "unix", "unix_milli", "unix_micro", "unix_nano"} {
			for _, zone := range []string{"", "UTC", "America/New_York"} {
				for _, flags := range []string{"", "&_inttotime=1", "&_texttotime=1", "&_inttotime=true&_texttotime=t"} {
					all = append(all, "_time_format="+format+"&_time_integer_format="+integer+"&_timezone="+zone+flags)
				}
			}
		}
	}
	return all
}

func TestTimesInAllFormats(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	p := newPair(t, "")
	query := way{"query", describeQuery}
	const columns = "d DATE, dt DATETIME, ts TIMESTAMP, ti TIME, i INT, tx TEXT, x"
	p.same(query, text("CREATE TABLE kept("+columns+")"))
	for _, v := range []any{
		"2024-02-03", "2024-02-03 04:05", "2024-02-03T04:05", "2024-02-03 04:05:06", "2024-02-03T04:05:06Z", "2024-02-03 04:05:06.123456789+02:00", "2024-02-03T04:05:06.5-07:00",
		"2024-02-03 04:05:06Z", "2024-02-03Z", "2024-02-03 04:05:06 +0200 CEST", "2024-02-03 04:05:06.7 +0000 UTC m=+0.123", "m=+1", "04:05:06", "2460000.5", "no time", "",
		0, 1, -1, 1700000000, 1700000000000, 1700000000000000, 1700000000000000000, 1000000000000, 1000000000001, -1000000000000, -1000000000001, math.MaxInt64, math.MinInt64, 1.5, []byte("2024-02-03"), nil,
	} {
		p.same(query, text("INSERT INTO kept VALUES(?1,?1,?1,?1,?1,?1,?1)", v))
	}
	for i, options := range timeOptions() {
		p.conns = p.open(options)
		t.Log(options)
		p.same(query, text("SELECT * FROM kept"))
		p.same(query, text("SELECT max(d), dt||'', (SELECT ts), upper(tx), x, datetime(dt) FROM kept GROUP BY rowid"))
		table := fmt.Sprint("t", i)
		p.same(query, text("CREATE TABLE "+table+"("+columns+")"))
		for _, v := range everyArgument() {
			if at, ok := v.(time.Time); ok {
				p.same(query, text("INSERT INTO "+table+" VALUES(?1,?1,?1,?1,?1,?1,?1) RETURNING *, max(d,'')", at))
				p.same(query, text("SELECT ?1, typeof(?1)", at))
			}
		}
		p.same(query, text("SELECT * FROM "+table))
		p.same(query, text("UPDATE "+table+" SET x=d RETURNING *, x||''"))
		if t.Failed() {
			return
		}
		p.conns[0].Close()
		p.conns[1].Close()
	}
}

const localTimes = `SELECT datetime('2024-07-01 12:00:00','localtime') || ' ' || datetime('2024-01-01 12:00:00','localtime') || ' ' ||
	datetime('2024-07-01 12:00:00','utc') || ' ' || datetime('1950-07-01 12:00:00','localtime') || ' ' || datetime('2080-01-01 12:00:00','localtime')`

// wantZone fails the test unless localtime is the same in reads, writes and
// transactions of all nodes.
func wantZone(t *testing.T, c *testCluster, want string) {
	t.Helper()
	for i := range c.Len() {
		db := c.DB(i)
		if err := c.Node(i).Ready(testrun.Context(t)); err != nil {
			t.Fatal(err)
		}
		if got := queryValue[string](t, db, localTimes); got != want {
			t.Errorf("a read on node %d: %s, want %s", i+1, got, want)
		}
		mustExec(t, db, "CREATE TABLE IF NOT EXISTS zone(at)")
		if got := queryValue[string](t, db, "INSERT INTO zone "+localTimes+" RETURNING at"); got != want {
			t.Errorf("a write on node %d: %s, want %s", i+1, got, want)
		}
		tx := mustBegin(t, db)
		mustExec(t, tx, "INSERT INTO zone "+localTimes)
		if got := queryValue[string](t, tx, localTimes); got != want {
			t.Errorf("a transaction on node %d: %s, want %s", i+1, got, want)
		}
		mustCommit(t, tx)
		read, err := db.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := queryValue[string](t, read, localTimes); got != want {
			t.Errorf("a read-only transaction on node %d: %s, want %s", i+1, got, want)
		}
		read.Rollback()
		if n := queryValue[int](t, db, "SELECT count(DISTINCT at) FROM zone"); n != 1 {
			t.Errorf("the table has %d different times, want 1", n)
		}
	}
	c.WaitEqual()
}

const (
	inUTC    = "2024-07-01 12:00:00 2024-01-01 12:00:00 2024-07-01 12:00:00 1950-07-01 12:00:00 2080-01-01 12:00:00"
	inBerlin = "2024-07-01 14:00:00 2024-01-01 13:00:00 2024-07-01 10:00:00 1950-07-01 14:00:00 2080-01-01 13:00:00"
)

// localtime uses the zone of the cluster, not that of the process. So the test runs
// itself again in a process with another zone.
func TestLocaltimeUsesTheZoneOfTheCluster(t *testing.T) {
	if os.Getenv("TZ") != "Asia/Kathmandu" {
		child := exec.Command(os.Args[0], "-test.run=^TestLocaltimeUsesTheZoneOfTheCluster$", "-test.v")
		child.Env = append(os.Environ(), "TZ=Asia/Kathmandu")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestLocaltimeUsesTheZoneOfTheCluster/a_zone/nodes=3") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	t.Run("UTC", func(t *testing.T) {
		eachSize(t, func(t *testing.T, c *testCluster) { wantZone(t, c, inUTC) })
	})
	for _, size := range []int{1, 3} {
		t.Run("a zone/nodes="+string(rune('0'+size)), func(t *testing.T) {
			c := newCluster(t, size, func(cfg *hiqlite.Config) { cfg.Timezone = "Europe/Berlin" })
			wantZone(t, c, inBerlin)
			// A node that is started without a zone uses that of the cluster.
			c.Stop(size - 1)
			c.Configure(size-1, func(cfg *hiqlite.Config) { cfg.Timezone = "" })
			c.Start(size - 1)
			c.WaitReady(size - 1)
			wantZone(t, c, inBerlin)
		})
	}
}

// A node that is started with another zone than the cluster has refuses all SQL, and
// says why.
func TestNodeWithAnotherZoneRefusesSQL(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		if cfg.NodeID < 3 {
			cfg.Timezone = "Europe/Berlin"
		}
	})
	wantZone(t, c, inBerlin)
	c.Stop(2)
	c.Configure(2, func(cfg *hiqlite.Config) { cfg.Timezone = "America/Bogota" })
	c.Start(2)
	for _, query := range []string{"SELECT 1", "INSERT INTO zone VALUES(1)", "BEGIN"} {
		_, err := c.DB(2).ExecContext(testrun.Context(t), query)
		if err == nil || !strings.Contains(err.Error(), "Europe/Berlin") || !strings.Contains(err.Error(), "America/Bogota") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", query, err)
		}
	}
	if _, err := c.DB(2).BeginTx(testrun.Context(t), nil); err == nil {
		t.Error("BeginTx has succeeded")
	}
	if err := c.Node(2).Ready(testrun.Context(t)); err == nil || !strings.Contains(err.Error(), "Europe/Berlin") {
		t.Errorf("Ready: %v", err)
	}
	mustExec(t, c.DB(0), "INSERT INTO zone VALUES('after')")
}
