package settings

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
)

// Markdown returns the tables of docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	group := ""
	for _, s := range table {
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "\n### %s\n\n| in hiqlite.toml | in the environment | type | default | meaning |\n|---|---|---|---|---|\n", group)
		}
		fallback := s.Otherwise
		if s.Default != "" {
			fallback = "`" + s.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", s.Key, s.Variable, s.kind.name, fallback, s.Doc)
	}
	return b.String()
}

// Generate writes a complete hiqlite.toml, in which everything but the folder of the
// data and the secrets is commented out. If secrets is not nil, the secrets are
// written to it, and the file names secretsFile as their file.
func Generate(file, secrets io.Writer, secretsFile string) error {
	var main, apart strings.Builder
	main.WriteString("# Settings of hiqlite. Lines that begin with #key show the default, or an example.\n" +
		"# Each setting can also be given by the environment variable that is named beside\n" +
		"# it, which wins, or by a file whose name is in the variable with _FILE after it.\n")
	apart.WriteString("# Secrets of hiqlite, for secrets_file in hiqlite.toml. The same on all nodes.\n")
	group := ""
	for _, s := range table {
		if s.group != group {
			group = s.group
			fmt.Fprintf(&main, "\n\n# ---- %s\n", group)
		}
		out, set := &main, fmt.Sprintf("#%s = %s", s.Key, s.sample())
		switch {
		case s.secret:
			if secrets != nil {
				out = &apart
			}
			set = fmt.Sprintf("%s = %q", s.Key, freshSecret())
		case s.Key == "data_dir", s.Key == "secrets_file" && secrets != nil:
			set = strings.TrimPrefix(set, "#")
			if s.Key == "secrets_file" {
				set = fmt.Sprintf("%s = %q", s.Key, secretsFile)
			}
		}
		fmt.Fprintf(out, "\n%s# %s\n%s\n", wrap(s.Doc), s.about(), set)
	}
	if _, err := io.WriteString(file, main.String()); err != nil || secrets == nil {
		return err
	}
	_, err := io.WriteString(secrets, apart.String())
	return err
}

// about returns the line of a setting that says its type, default and variable.
func (s *Setting) about() string {
	fallback := "default"
	if s.Default == "" {
		fallback = "if not set"
	}
	line := fmt.Sprintf("%s; ", s.kind.name)
	if otherwise := s.Default + s.Otherwise; otherwise != "-" {
		line += fmt.Sprintf("%s: %s; ", fallback, otherwise)
	}
	return line + s.Variable
}

// sample returns a value of a setting as it is written in TOML.
func (s *Setting) sample() string {
	v := s.Default
	if v == "" {
		v = s.Example
	}
	switch {
	case s.kind.toml == tomlList:
		var items []string
		for item := range strings.SplitSeq(v, "\n") {
			items = append(items, fmt.Sprintf("%q", item))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case s.kind.quote:
		return fmt.Sprintf("%q", v)
	}
	return v
}

// freshSecret returns 32 random bytes as text.
func freshSecret() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// wrap returns a text as lines of comments.
func wrap(text string) string {
	const width = 86
	var b strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
	return b.String()
}
