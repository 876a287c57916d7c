#!/bin/sh
# Installs the Debian packages that the named groups of packages.txt need and that are not
# there yet. A shell script, since Rust itself needs some of them to build xtask.
set -eu

stop() {
	echo "sentry: $*" >&2
	exit 1
}

list=$(dirname "$0")/packages.txt
wanted=
for group in build "$@"; do
	wanted="$wanted $(awk -v group="$group" '$1 == group { print $2 }' "$list")"
done

missing=
if command -v dpkg-query >/dev/null; then
	for package in $wanted; do
		# Node.js often comes from elsewhere and brings npm, which is then in conflict with Debian's.
		case $package in
		nodejs) ! command -v node >/dev/null || continue ;;
		npm) ! command -v npm >/dev/null || continue ;;
		esac
		status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) || :
		[ "$status" = installed ] || missing="$missing $package"
	done
else
	echo "sentry: not a Debian system: what Debian calls$(echo $wanted | sed 's/^/ /') must be there" >&2
fi

if [ -n "$missing" ]; then
	if [ "$(id -u)" = 0 ]; then
		sudo=
	elif command -v sudo >/dev/null; then
		sudo=sudo
	else
		stop "these packages are missing, and installing them takes root:$missing"
	fi
	echo "sentry: installing$missing"
	$sudo sh -eu -c '
		# Debian starts the services of what it installs; only the programs are wanted.
		policy=/usr/sbin/policy-rc.d
		if [ ! -e $policy ]; then
			trap "rm -f $policy" EXIT
			trap "exit 1" HUP INT TERM
			printf "#!/bin/sh\nexit 101\n" >$policy
			chmod 755 $policy
		fi
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq
		apt-get install -qq --no-install-recommends "$@" >/dev/null
		command -v systemctl >/dev/null || exit 0
		for service in prometheus nginx; do
			case " $* " in
			*" $service "* | *" $service-light "*) systemctl disable --quiet $service.service || : ;;
			esac
		done
	' install $missing || stop "these packages could not be installed:$missing"
fi

command -v cargo >/dev/null ||
	stop "cargo is missing: get Rust from https://rustup.rs, and use make as the user who has it"
