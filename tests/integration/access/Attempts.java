// Tries to log in once for each line: host, port, database, user, password, sslmode, CA, certificate, key.
// Answers each with a line: who it was let in as, or the SQLSTATE and the message.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;

public class Attempts {
    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            out.println(attempt(line.split("\t", -1)));
        }
    }

    private static String attempt(String[] given) {
        Properties options = new Properties();
        options.setProperty("user", given[3]);
        options.setProperty("password", given[4]);
        options.setProperty("sslmode", given[5]);
        options.setProperty("sslrootcert", given[6]);
        if (!given[7].isEmpty()) {
            options.setProperty("sslcert", given[7]);
            options.setProperty("sslkey", given[8]);
        }
        options.setProperty("gssEncMode", "disable");
        options.setProperty("loginTimeout", "10");
        String url = "jdbc:postgresql://" + given[0] + ":" + given[1] + "/" + given[2];
        try (Connection connection = DriverManager.getConnection(url, options);
                Statement statement = connection.createStatement();
                ResultSet row = statement.executeQuery("SELECT current_user")) {
            row.next();
            return row.getString(1) + "\t\t";
        } catch (SQLException error) {
            String state = error.getSQLState();
            // Class 08 is the driver's own: no connection.
            boolean own = state == null || state.startsWith("08");
            return "\t" + (own ? "" : state) + "\t" + error.getMessage().replaceAll("\\s+", " ");
        }
    }
}
