package hiqlite

import (
	"fmt"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// SQLite has no type for times, so times are stored as texts. By default all of them
// are written in UTC and in the same layout. Then the order of the texts is the order
// of the times, equal times are equal texts, and SQLite's date functions can read
// them. The layout drops trailing zeros of the fraction, which keeps the order because
// '+' sorts before '.' and before all digits.
const (
	defaultTimeLayout = "2006-01-02 15:04:05.999999999-07:00"
	stringTimeLayout  = "2006-01-02 15:04:05.999999999 -0700 MST" // time.Time.String's
)

// timeFormats are the layouts by the names of ConnConfig.TimeFormat. The names are those
// of modernc.org/sqlite, except for "string", which is its default.
var timeFormats = map[string]string{
	"sqlite":              defaultTimeLayout,
	"datetime":            "2006-01-02 15:04:05",
	"string":              "",
	"string_no_monotonic": stringTimeLayout,
}

// timeValue converts an argument that is a time.
func (c *ConnConfig) timeValue(t time.Time) (wire.Value, error) {
	switch c.TimeIntegerFormat {
	case "unix":
		return wire.IntegerValue(t.Unix()), nil
	case "unix_milli":
		return wire.IntegerValue(t.UnixMilli()), nil
	case "unix_micro":
		return wire.IntegerValue(t.UnixMicro()), nil
	case "unix_nano":
		return wire.IntegerValue(t.UnixNano()), nil
	}
	switch c.TimeFormat {
	case "":
		t = t.UTC()
		if year := t.Year(); year < 0 || year > 9999 {
			return wire.Value{}, misuse("SQLite's date functions accept only the years 0 to 9999, in UTC; _time_format=string also writes other years, but the order of such texts is not that of the times", "the time %s has the year %d", t.Format(stringTimeLayout), year)
		}
		return wire.TextValue(t.Format(defaultTimeLayout)), nil
	case "string":
		return wire.TextValue(c.inLocation(t).String()), nil
	}
	return wire.TextValue(c.inLocation(t).Format(timeFormats[c.TimeFormat])), nil
}

// inLocation returns t in the connection's zone, if it has one.
func (c *ConnConfig) inLocation(t time.Time) time.Time {
	if c.Location == nil {
		return t
	}
	return t.In(c.Location)
}

// holdsTimes reports whether a declared type, in upper case, is DATE, DATETIME,
// TIMESTAMP or TIMESTAMPTZ. A precision may follow, and WITH or WITHOUT TIME ZONE.
func holdsTimes(declType string) bool {
	if open := strings.IndexByte(declType, '('); open >= 0 {
		rest := declType[open:]
		closing := strings.IndexByte(rest, ')')
		if closing < 0 {
			return false
		}
		declType = declType[:open] + " " + rest[closing+1:]
	}
	name, rest, _ := strings.Cut(strings.Join(strings.Fields(declType), " "), " ")
	switch rest {
	case "", "WITH TIME ZONE", "WITHOUT TIME ZONE", "WITH LOCAL TIME ZONE":
	default:
		return false
	}
	switch name {
	case "DATE", "DATETIME", "TIMESTAMP", "TIMESTAMPTZ":
		return true
	}
	return false
}

// parseTime parses a time in any layout in which SQLite, this driver or another one
// writes times. A time without a zone is taken to be in ConnConfig.Location or, if that
// is nil, in UTC. guess says that nothing but the text itself suggests that it is a time,
// so that only common layouts are accepted.
func (c *ConnConfig) parseTime(s string, guess bool) (time.Time, bool) {
	if !guess {
		s = strings.TrimSpace(s)
	}
	p := timeParser{rest: s, guess: guess}
	zone := c.Location
	if zone == nil {
		zone = time.UTC
	}
	t, ok := p.parse(zone)
	if !ok {
		return time.Time{}, false
	}
	return c.inLocation(t), true
}

// A timeParser parses a time. Its methods consume the front of rest.
type timeParser struct {
	rest   string
	guess  bool // accept only years of four digits, and zones of one word
	named  bool // a zone's name follows the offset, as time.Time.String writes it
	failed bool
}

// parse parses YYYY-MM-DD, after which a time of day and a zone may follow. It also
// parses what time.Time.String returns, with the zone's name and the reading of the
// monotonic clock. zone is the zone of a time without one.
func (p *timeParser) parse(zone *time.Location) (time.Time, bool) {
	year, month, day := p.date()
	var hour, minute, second, nanosecond int
	if p.skip(" Tt") && p.rest != "" && !p.failed {
		hour, minute, second, nanosecond = p.clock()
	}
	if p.failed || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	offset, name, found := p.zone()
	if p.failed || p.rest != "" {
		return time.Time{}, false
	}
	// Only time.Time.String writes other years. Without this rule a result of
	// timediff, such as -0023-11-30 12:00:00.000, would be taken for a time.
	if (year < 0 || year > 9999) && !p.named {
		return time.Time{}, false
	}
	if found {
		zone = time.UTC
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, nanosecond, zone)
	if !found {
		// Refuse a day that the month does not have, but not an hour that the zone
		// skips when its clocks go forward.
		return t, time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).Day() == day
	}
	if t.Day() != day {
		return time.Time{}, false
	}
	return inWrittenZone(t.Add(-time.Duration(offset)*time.Second), offset, name), true
}

// inWrittenZone returns t in the zone that was written with it. Like time.Parse, it uses
// time.Local if that has the same offset and name at t.
func inWrittenZone(t time.Time, offset int, name string) time.Time {
	if offset == 0 && (name == "" || name == "UTC") {
		return t
	}
	local := t.Local()
	if abbreviation, localOffset := local.Zone(); localOffset == offset && (name == "" || name == abbreviation) {
		return local
	}
	return t.In(time.FixedZone(name, offset))
}

// date parses YYYY-MM-DD.
func (p *timeParser) date() (year, month, day int) {
	most := 9
	if p.guess {
		most = 4
	}
	negative := !p.guess && p.skip("-")
	if negative && strings.HasPrefix(p.rest, "0000") { // such as -0000-01-06 10:00:00.000, a result of timediff
		p.failed = true
	}
	padded := strings.HasPrefix(p.rest, "0")
	before := len(p.rest)
	year = p.digits(4, most)
	if padded && before-len(p.rest) > 4 { // such as 02023, which is no time to SQLite
		p.failed = true
	}
	if negative {
		year = -year
	}
	p.expect("-")
	month = p.digits(2, 2)
	p.expect("-")
	return year, month, p.digits(2, 2)
}

// clock parses HH:MM, after which :SS and a fraction may follow.
func (p *timeParser) clock() (hour, minute, second, nanosecond int) {
	hour = p.digits(1, 2)
	p.expect(":")
	minute = p.digits(2, 2)
	if !p.skip(":") {
		return hour, minute, 0, 0
	}
	second = p.digits(2, 2)
	if !p.skip(".,") {
		return hour, minute, second, 0
	}
	unit := int(time.Second)
	for n := 0; ; n++ {
		if p.rest == "" || p.rest[0] < '0' || p.rest[0] > '9' {
			p.failed = p.failed || n == 0
			return hour, minute, second, nanosecond
		}
		unit /= 10
		nanosecond += int(p.rest[0]-'0') * unit
		p.rest = p.rest[1:]
	}
}

// zone parses Z, UTC, GMT or an offset, which a space may precede. After an offset
// the zone's name and the monotonic clock of time.Time.String may follow.
func (p *timeParser) zone() (offset int, name string, found bool) {
	p.skip(" ")
	switch p.rest {
	case "":
		return 0, "", false
	case "Z", "z", "UTC", "GMT":
		p.rest = ""
		return 0, "", true
	}
	sign := 1
	if p.skip("-") {
		sign = -1
	} else {
		p.expect("+")
	}
	hours, minutes := p.digits(2, 2), 0
	if p.skip(":") || p.rest != "" && p.rest[0] != ' ' {
		minutes = p.digits(2, 2)
	}
	p.failed = p.failed || hours > 23 || minutes > 59
	if p.skip(" ") {
		p.named = true
		name = p.rest
		if at := strings.LastIndex(" "+name, " m="); at >= 0 {
			name = strings.TrimSpace(name[:max(0, at-1)])
		}
		p.failed = p.failed || p.guess && strings.Contains(name, " ")
		p.rest = ""
		if strings.Trim(name, "+-0123456789") == "" {
			name = "" // time.Time.String repeats the offset if the zone has no name
		}
	}
	return sign * (hours*3600 + minutes*60), name, true
}

// digits parses a number of least to most digits.
func (p *timeParser) digits(least, most int) (n int) {
	length := 0
	for length < len(p.rest) && length < most && '0' <= p.rest[length] && p.rest[length] <= '9' {
		n = n*10 + int(p.rest[length]-'0')
		length++
	}
	p.failed = p.failed || length < least
	p.rest = p.rest[length:]
	return n
}

// skip consumes the next character if it is one of these, and reports whether it was.
func (p *timeParser) skip(of string) bool {
	if p.rest == "" || strings.IndexByte(of, p.rest[0]) < 0 {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// expect is skip for a character that must be there.
func (p *timeParser) expect(one string) { p.failed = !p.skip(one) || p.failed }

func unknownTimeFormat(name string) error {
	return fmt.Errorf("hiqlite: unknown time format %q: use sqlite, datetime, string or string_no_monotonic, or leave it out", name)
}
