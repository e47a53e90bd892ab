#!/usr/bin/perl -w
use strict;
use SelfLoader;
use English;
use Env qw(HOME @PATH QUERY_STRING);

print "Content-type: text/plain\n\n";
print late(3), " ", $PROCESS_ID == $$, " @PATH $QUERY_STRING $PROGRAM_NAME\n";
print tell(main::DATA), "\n";
eval { nothing() };
print $@;
$PROGRAM_NAME = "renamed";
open my $file, "<", "/proc/self/cmdline";
print <$file> =~ /^renamed/ ? "renamed\n" : "not\n";
open $file, "<", "/proc/self/comm";
print <$file>;

__DATA__
sub late { return "late " . $_[0] * 2 }
sub more { 1 }
