#!/usr/bin/perl
# The script's own file as the lock that keeps a second run away.
use Fcntl ':flock';

$| = 1;
print "Content-type: text/plain\n\n";
print flock(DATA, LOCK_EX | LOCK_NB) ? "locked\n" : "no: $!\n";
print scalar(<DATA>);
seek(DATA, 0, 0);
print scalar(<DATA>), eof(DATA) ? 1 : 0, "\n";
if (fork) {
    wait;
    print "child $?\n";
}
else {
    open(my $again, "<", $0);
    exit(flock($again, LOCK_EX | LOCK_NB) ? 1 : 0);
}
warn "with a handle";
close DATA;
warn "without";
__END__
first
second
