#!/usr/bin/perl
BEGIN { $SIG{__DIE__} = sub { print "handler: $_[0]" } }
$SIG{__WARN__} = sub { print "warned: $_[0]" };
warn "first\n";
eval { die "inner\n" };
print "caught $@";
my $x = undef . "";
die "outer\n";
