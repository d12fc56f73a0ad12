#!/bin/bash
# PID 1 of one emulated machine, in fresh mount, pid, uts and ipc namespaces (and net, for an instance).
#
#   init.sh FOLDER LAYERS NAME     with RIG_BINDS: paths of this machine to show there read-only, one a line
#
# FOLDER/upper keeps what the machine writes, FOLDER/boot.sh is what it runs, and nothing of it starts
# before FOLDER/go exists: by then the network is there.
set -eu
umask 022
folder=$1 layers=$2 name=$3
root=$folder/root
[ $$ = 1 ] || { echo "init.sh must be PID 1 of its own namespaces" >&2; exit 1; }
mount --make-rprivate /
mkdir -p "$folder/upper" "$folder/work" "$root"
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$folder/upper,workdir=$folder/work" "$root"
while read -r path; do
  if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$(dirname "$root$path")"; : >> "$root$path"; fi
  mount --bind "$path" "$root$path"
  mount -o remount,bind,ro "$root$path"
done <<< "$RIG_BINDS"
unset RIG_BINDS

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
  : > "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,size=90% tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%:*}" "$root/dev/${number#*:}"; done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
hostname "$name"
cp "$folder/boot.sh" "$root/run/boot.sh"

cd "$root"
mkdir -p .outside
pivot_root . .outside
cd /
until [ -e "/.outside$folder/go" ]; do sleep 0.02; done
umount -l /.outside
rmdir /.outside
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > /etc/hosts
echo "$name" > /etc/hostname
exec /bin/bash /run/boot.sh
