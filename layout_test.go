package hiqlite_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/hiqlite/hiqlite"

// mayImport says, for each package of the project, which others its code may
// import (its tests may import all). Imports point downwards only: a package
// knows nothing of those that are listed before it. A new package gets a line.
//
// kv, lock and pubsub are above the root, whose Client interface they use, and do not
// import each other. backup and heal will be there, too.
var mayImport = []struct {
	packages string // a path.Match pattern
	imports  []string
}{
	{"cmd/*", []string{".", "cluster", "cluster/raftlog", "driver", "kv", "lock", "pubsub", "internal/loopback", "internal/server", "internal/settings", "internal/spelling"}},
	{"examples/*", []string{".", "driver", "kv", "lock", "pubsub"}}, // and the packages below it
	{"examples/*/*", nil},
	{"benchmarks", nil},
	{"benchmarks/*", nil},
	{"tests/compat/*", nil},
	{"tests/compat/*/*", nil}, // these import each other, see mayImportWithin
	{"tests/process", []string{".", "kv", "pubsub", "internal/loopback", "internal/server", "internal/testrun"}},
	{"tests/*", []string{".", "driver"}},
	{"driver", []string{".", "internal/settings", "internal/spelling"}},
	{"kv", []string{".", "internal/shardapi", "internal/wire"}},
	{"lock", []string{".", "internal/shardapi", "internal/wire"}},
	{"pubsub", []string{".", "internal/shardapi", "internal/wire"}},
	{"hiqlitetest", []string{".", "internal/loopback", "internal/server", "internal/testrun"}},
	{"internal/server", []string{".", "api/hiqlite/v1", "api/hiqlite/v1/hiqlitev1connect", "internal/connapi", "internal/protocol", "internal/ratelimit", "internal/shardapi", "internal/wire"}},
	{".", []string{"api/hiqlite/v1", "internal/connapi", "internal/protocol", "internal/remote", "internal/identity", "internal/loopback", "internal/node", "internal/shardapi", "internal/sqlite", "internal/wire", "statemachine/replica"}}, // the nouns of database/sql
	{"internal/remote", []string{"api/hiqlite/v1", "api/hiqlite/v1/hiqlitev1connect", "internal/connapi", "internal/identity", "internal/node", "internal/protocol", "internal/shardapi", "internal/wire"}},
	{"internal/protocol", []string{"api/hiqlite/v1", "internal/connapi", "internal/identity", "internal/node", "internal/shardapi", "internal/sqlite", "internal/wire"}},
	{"internal/connapi", []string{"internal/sqlite", "internal/wire"}},
	{"api", nil}, // its generator
	{"api/hiqlite/v1", nil},
	{"api/hiqlite/v1/hiqlitev1connect", []string{"api/hiqlite/v1"}},
	{"internal/node", []string{"cluster", "statemachine", "statemachine/replica", "statemachine/memory", "internal/shardapi", "internal/durable", "internal/identity", "internal/loopback", "internal/sqlite", "internal/wire"}},
	{"cluster", []string{"cluster/raftlog", "cluster/transport", "internal/durable", "internal/identity", "internal/invariants"}}, // it moves bytes
	{"cluster/transport", []string{"internal/identity"}},
	{"cluster/raftlog", []string{"internal/durable"}},
	{"statemachine/replica", []string{"statemachine", "internal/durable", "internal/invariants", "internal/sqlite", "internal/wire"}},
	{"statemachine/memory", []string{"statemachine", "internal/invariants", "internal/shardapi", "internal/table", "internal/wire"}},
	{"statemachine", []string{"internal/wire"}},
	{"internal/shardapi", []string{"internal/wire"}},
	{"internal/sqlite", []string{"internal/wire"}},
	{"internal/datadriven", nil}, // for tests
	{"internal/durable", nil},
	{"internal/identity", nil},
	{"internal/invariants", nil},
	{"internal/loopback", nil},
	{"internal/ratelimit", nil},
	{"internal/settings", []string{".", "internal/ratelimit", "internal/spelling"}},
	{"internal/spelling", nil},
	{"internal/testrun", nil},
	{"internal/table", nil},
	{"internal/wire", nil},
}

// mayImportWithin are folders whose packages may import each other. Each is the
// name of a folder, or a path.Match pattern.
var mayImportWithin = []string{"examples/*", "tests/compat"}

// confined are dependencies, by the prefix of their path, that only some
// packages may import. The first line whose prefix matches decides.
var confined = []struct {
	prefix   string
	packages []string
	tests    bool // all tests may import it, too
}{
	{"modernc.org/sqlite/lib", []string{"internal/sqlite"}, false},
	{"modernc.org/libc", []string{"internal/sqlite"}, false},
	{"modernc.org/sqlite", nil, true}, // registers a driver that would clash in users' programs
	{"github.com/lni/dragonboat/v4/statemachine", []string{"cluster", "statemachine", "statemachine/replica", "statemachine/memory", "internal/node"}, true},
	{"github.com/lni/dragonboat", []string{"cluster", "cluster/raftlog", "cluster/transport"}, false},
	{"connectrpc.com/connect", []string{"internal/server", "internal/remote", "internal/protocol", "api/hiqlite/v1/hiqlitev1connect"}, true},
	// Only modules of their own (see go.work) use these: a program that imports hiqlite
	// must not require them.
	{"github.com/spf13/cobra", []string{"cmd/hiqlite"}, false},
	{"github.com/peterh/liner", []string{"cmd/hiqlite"}, false},
	{"github.com/creack/pty", []string{"cmd/hiqlite"}, false},
	{"github.com/mattn/go-runewidth", []string{"cmd/hiqlite"}, false},
	{"golang.org/x/term", []string{"cmd/hiqlite"}, false},
	{"github.com/pelletier/go-toml", []string{"internal/settings"}, false},
	{"golang.org/x/time/rate", []string{"internal/ratelimit"}, false},
	{"github.com/jmoiron/sqlx", []string{"examples/quickstart", "examples/sqlx", "tests/compat"}, false},
}

// The imports of all packages follow the rules of mayImport and confined, with all build
// tags. The test also reads the modules that are nested in the repository.
func TestImportDirections(t *testing.T) {
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && file != "." && (name == "testdata" || strings.ContainsAny(name[:1], "._")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		from := filepath.ToSlash(filepath.Dir(file))
		found[from] = true
		for _, spec := range f.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(from, to, strings.HasSuffix(file, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", file, to, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < len(mayImport) {
		t.Errorf("found the packages %v only", found)
	}
}

// forbidden says why a package may not import another, or nothing.
func forbidden(from, to string, test bool) string {
	if to == modulePath || strings.HasPrefix(to, modulePath+"/") {
		to = path.Clean("./" + strings.TrimPrefix(to, modulePath))
		for _, rule := range mayImport {
			if ok, _ := path.Match(rule.packages, from); ok {
				if test || slices.Contains(rule.imports, to) || inOneFolder(from, to) {
					return ""
				}
				return "imports point downwards only, see mayImport"
			}
		}
		return "the package has no line in mayImport yet"
	}
	for _, rule := range confined {
		if to == rule.prefix || strings.HasPrefix(to, rule.prefix+"/") {
			if slices.Contains(rule.packages, from) || test && rule.tests {
				return ""
			}
			return "only " + strings.Join(rule.packages, ", ") + " may, see confined"
		}
	}
	return ""
}

// inOneFolder reports whether both packages are in the same folder of those that
// mayImportWithin matches.
func inOneFolder(from, to string) bool {
	parts := strings.Split(from, "/")
	for i := range parts {
		folder := strings.Join(parts[:i+1], "/")
		for _, pattern := range mayImportWithin {
			if ok, _ := path.Match(pattern, folder); ok && strings.HasPrefix(to+"/", folder+"/") {
				return true
			}
		}
	}
	return false
}

// The rules refuse the imports that they exist for, and allow others.
func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test     bool
		ok       bool
	}{
		{"driver", modulePath, false, true},
		{".", modulePath + "/driver", false, false},
		{".", modulePath + "/cluster", false, false},
		{".", modulePath + "/driver", true, true},
		{"cluster", modulePath + "/statemachine", false, false},
		{"cluster", modulePath, false, false},
		{"statemachine", modulePath + "/cluster", false, false},
		{"statemachine", modulePath + "/statemachine/replica", false, false},
		{"statemachine/replica", modulePath + "/statemachine/memory", false, false},
		{"statemachine/memory", modulePath + "/internal/sqlite", false, false},
		{"internal/wire", modulePath + "/internal/sqlite", false, false},
		{"newcomer", modulePath, false, false},
		{"internal/sqlite", "modernc.org/sqlite/lib", false, true},
		{"statemachine", "modernc.org/sqlite/lib", false, false},
		{"statemachine", "modernc.org/sqlite/lib", true, false},
		{".", "modernc.org/sqlite", false, false},
		{"internal/sqlite", "modernc.org/sqlite", false, false},
		{"benchmarks", "modernc.org/sqlite", true, true},
		{"cluster", "github.com/lni/dragonboat/v4", false, true},
		{".", "github.com/lni/dragonboat/v4", false, false},
		{"statemachine", "github.com/lni/dragonboat/v4/config", false, false},
		{"statemachine", "github.com/lni/dragonboat/v4/statemachine", false, true},
		{".", "github.com/lni/dragonboatlike", false, true},
		{"examples/sqlc", modulePath + "/examples/sqlc/library", false, true},
		{"examples/cache", modulePath + "/examples/sqlc/library", false, false},
		{"examples/sqlc/library", modulePath + "/cluster", false, false},
		{"tests/compat/entdb/person", modulePath + "/tests/compat/entdb/predicate", false, true},
		{"tests/compat/entdb", modulePath + "/statemachine", false, false},
		{"cmd/hiqlite", "github.com/spf13/cobra", false, true},
		{".", "github.com/spf13/cobra", true, false},
		{"tests/consistency", "github.com/jmoiron/sqlx", true, false},
	} {
		if why := forbidden(c.from, c.to, c.test); (why == "") != c.ok {
			t.Errorf("%s imports %s (test: %v): %q", c.from, c.to, c.test, why)
		}
	}
}
